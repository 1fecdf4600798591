//! A model that also wants a shell, which no world declares.

wit_bindgen::generate!({
    path: ["../../../wit/v1"],
    inline: "
        package evil:guest;

        interface shell {
            run: func(command: string) -> string;
        }

        world undeclared {
            include mortise:plugin/model@0.1.0;
            import shell;
        }
    ",
    world: "evil:guest/undeclared",
    skip: ["predict"],
    generate_all,
});

use evil::guest::shell;
use exports::mortise::plugin::model_api::{Error, Guest, Plan};

struct Undeclared;

impl Guest for Undeclared {
    fn load(config: String) -> Result<Plan, Error> {
        Err(Error::Failed(shell::run(&config)))
    }
}

#[unsafe(export_name = "mortise:plugin/model-api@0.1.0#predict")]
extern "C" fn predict(_: *mut u32, _: usize) -> *mut u32 {
    std::process::abort()
}

export!(Undeclared);
