//! A model that breaks the rules of the component model's binary interface
//! below the SDK. Its configuration is the bare name of a lie: `list`,
//! `handle`, `stolen`, `case`, `utf8`, `pointer` or `keep`; see [`predict`].

wit_bindgen::generate!({
    path: "../../../wit/v1",
    world: "model",
    skip: ["predict"],
    generate_all,
});

use exports::mortise::plugin::model_api::{Error, Guest, Plan};
use mortise::plugin::types::{Dtype, Signature, TensorSpec};
use std::cell::RefCell;

thread_local! {
    static LIE: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Abi;

impl Guest for Abi {
    fn load(config: String) -> Result<Plan, Error> {
        LIE.set(config);
        let spec =
            |name: &str| TensorSpec { name: name.into(), dtype: Dtype::Fp32, shape: vec![-1] };
        Ok(Plan::Custom(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] }))
    }
}

/// `result<list<tensor>, error>` in memory: discriminant, then a pointer and a
/// length, or the case of the error and its text.
type Area = [usize; 4];

#[unsafe(export_name = "mortise:plugin/model-api@0.1.0#predict")]
extern "C" fn predict(handles: *mut u32, _count: usize) -> *mut Area {
    let bogus: &'static [u32] = &[4_000_000];
    let broken: &'static [u8] = &[0xff, 0xfe];
    let area = match LIE.with_borrow(Clone::clone).as_str() {
        // A list of tensors longer than memory.
        "list" => [0, 8, usize::MAX, 0],
        // A tensor that does not exist.
        "handle" => [0, bogus.as_ptr() as usize, 1, 0],
        // The borrowed input as if it were owned.
        "stolen" => [0, handles as usize, 1, 0],
        // Neither a result nor an error.
        "case" => [7, 0, 0, 0],
        // An error whose text is not UTF-8.
        "utf8" => [1, 2, broken.as_ptr() as usize, 2],
        // The result lies outside memory.
        "pointer" => return usize::MAX as *mut Area,
        // An empty answer, while the input is not given back.
        _ => [0, 0, 0, 0],
    };
    Box::into_raw(Box::new(area))
}

export!(Abi);
