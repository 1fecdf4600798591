//! The SDK may not use the runtime, so that each has its own table of types.

use mortise_plugin_sdk::DType as Theirs;
use mortise_types::DType as Ours;

#[test]
fn the_tables_of_types_agree() {
    let numbers: Vec<i32> = (0..64).filter(|&number| Ours::from_onnx(number).is_some()).collect();
    assert_eq!(numbers.len(), 24, "a type was added: add it to both tables");
    for number in 0..64 {
        match (Ours::from_onnx(number), Theirs::from_onnx(number)) {
            (Some(ours), Some(theirs)) => {
                assert_eq!(ours.bits(), theirs.bits() as usize, "{ours} {theirs}");
                assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "number {number}");
                let wire = ours.wire_name().unwrap_or(theirs.name());
                assert_eq!(wire, theirs.name(), "number {number}");
                assert_eq!(ours.byte_len(3), theirs.byte_len(3).map(|bytes| bytes as usize));
            }
            (ours, theirs) => assert!(ours.is_none() && theirs.is_none(), "{ours:?} {theirs:?}"),
        }
    }
}
