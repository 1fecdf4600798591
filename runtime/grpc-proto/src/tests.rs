use crate::inference as pb;
use crate::{ModelInferRequest, encode_infer};
use bytes::Bytes;
use mortise_types::{DType, ErrorKind, Result, Tensor};
use mortise_wire::{InferReply, InferRequest, NoSharedMemory, Parameter, WireLimits};
use pb::infer_parameter::ParameterChoice;
use prost::Message;

/// The protocol's own messages, as a client's library has them.
mod client {
    use super::pb;
    use std::collections::BTreeMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Input {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) datatype: String,
        #[prost(int64, repeated, tag = "3")]
        pub(super) shape: Vec<i64>,
        #[prost(btree_map = "string, message", tag = "4")]
        pub(super) parameters: BTreeMap<String, pb::InferParameter>,
        #[prost(message, optional, tag = "5")]
        pub(super) contents: Option<pb::InferTensorContents>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Output {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(btree_map = "string, message", tag = "2")]
        pub(super) parameters: BTreeMap<String, pb::InferParameter>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Request {
        #[prost(string, tag = "1")]
        pub(super) model_name: String,
        #[prost(string, tag = "2")]
        pub(super) model_version: String,
        #[prost(string, tag = "3")]
        pub(super) id: String,
        #[prost(btree_map = "string, message", tag = "4")]
        pub(super) parameters: BTreeMap<String, pb::InferParameter>,
        #[prost(message, repeated, tag = "5")]
        pub(super) inputs: Vec<Input>,
        #[prost(message, repeated, tag = "6")]
        pub(super) outputs: Vec<Output>,
        #[prost(bytes = "vec", repeated, tag = "7")]
        pub(super) raw: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Response {
        #[prost(string, tag = "1")]
        pub(super) model_name: String,
        #[prost(string, tag = "2")]
        pub(super) model_version: String,
        #[prost(string, tag = "3")]
        pub(super) id: String,
        #[prost(btree_map = "string, message", tag = "4")]
        pub(super) parameters: BTreeMap<String, pb::InferParameter>,
        #[prost(message, repeated, tag = "5")]
        pub(super) outputs: Vec<Input>,
        #[prost(bytes = "vec", repeated, tag = "6")]
        pub(super) raw: Vec<Vec<u8>>,
    }
}

use client::{Input, Output, Request, Response};

fn input(name: &str, datatype: &str, shape: &[i64]) -> Input {
    Input {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..Input::default()
    }
}

fn typed(datatype: &str, shape: &[i64], contents: pb::InferTensorContents) -> Request {
    let input = Input { contents: Some(contents), ..input("x", datatype, shape) };
    Request { inputs: vec![input], ..Request::default() }
}

fn parameter(choice: ParameterChoice) -> pb::InferParameter {
    pb::InferParameter { parameter_choice: Some(choice) }
}

fn decode(request: &Request) -> Result<InferRequest> {
    let message = ModelInferRequest::decode(Bytes::from(request.encode_to_vec())).unwrap();
    message.decode_infer(&WireLimits::default())
}

fn one(request: &Request) -> Tensor {
    decode(request).unwrap().inputs.remove(0).tensor
}

#[test]
fn typed_contents_of_every_datatype() {
    type Contents = pb::InferTensorContents;
    let none = Contents::default;
    let bools = Contents { bool_contents: vec![true, false], ..none() };
    assert_eq!(one(&typed("BOOL", &[2], bools)).bool_bytes().unwrap(), [1, 0]);
    let ints = Contents { int_contents: vec![-128, 127], ..none() };
    assert_eq!(one(&typed("INT8", &[2], ints.clone())).as_slice::<i8>().unwrap(), [-128, 127]);
    assert_eq!(one(&typed("INT16", &[2], ints.clone())).as_slice::<i16>().unwrap(), [-128, 127]);
    assert_eq!(one(&typed("INT32", &[2], ints)).as_slice::<i32>().unwrap(), [-128, 127]);
    let longs = Contents { int64_contents: vec![i64::MIN], ..none() };
    assert_eq!(one(&typed("INT64", &[1], longs)).as_slice::<i64>().unwrap(), [i64::MIN]);
    let uints = Contents { uint_contents: vec![255], ..none() };
    assert_eq!(one(&typed("UINT8", &[1], uints.clone())).as_slice::<u8>().unwrap(), [255]);
    assert_eq!(one(&typed("UINT16", &[1], uints.clone())).as_slice::<u16>().unwrap(), [255]);
    assert_eq!(one(&typed("UINT32", &[1], uints)).as_slice::<u32>().unwrap(), [255]);
    let ulongs = Contents { uint64_contents: vec![u64::MAX], ..none() };
    assert_eq!(one(&typed("UINT64", &[1], ulongs)).as_slice::<u64>().unwrap(), [u64::MAX]);
    let floats = Contents { fp32_contents: vec![1.5, -2.0], ..none() };
    assert_eq!(one(&typed("FP32", &[2, 1], floats)).as_slice::<f32>().unwrap(), [1.5, -2.0]);
    let doubles = Contents { fp64_contents: vec![0.1], ..none() };
    assert_eq!(one(&typed("FP64", &[1], doubles)).as_slice::<f64>().unwrap(), [0.1]);
    let strings = vec![Bytes::from_static(b"ab"), Bytes::new()];
    let strings = one(&typed("BYTES", &[2], Contents { bytes_contents: strings, ..none() }));
    assert_eq!(strings.strings().unwrap().iter().collect::<Vec<_>>(), [b"ab".as_slice(), b""]);
    assert!(
        one(&Request { inputs: vec![input("x", "FP32", &[0])], ..Request::default() }).is_empty()
    );
}

#[test]
fn raw_contents_are_borrowed_in_order() {
    let inputs = vec![input("a", "UINT8", &[3]), input("b", "FP16", &[1])];
    let request = Request { inputs, raw: vec![vec![1, 2, 3], vec![0, 60]], ..Request::default() };
    let body = Bytes::from(request.encode_to_vec());
    let range = body.as_ptr_range();
    let message = ModelInferRequest::decode(body.clone()).unwrap();
    let decoded = message.decode_infer(&WireLimits::default()).unwrap();
    let bytes = decoded.inputs[0].tensor.bytes().unwrap();
    assert_eq!(bytes, [1, 2, 3]);
    assert!(range.contains(&bytes.as_ptr()), "copied");
    assert_eq!(
        (decoded.inputs[1].name.as_str(), decoded.inputs[1].tensor.dtype()),
        ("b", DType::F16)
    );
}

#[test]
fn parameters_and_outputs() {
    let mut request = Request { id: "7".into(), ..Request::default() };
    request.inputs.push(input("x", "FP32", &[0]));
    let mut set = |name: &str, choice| request.parameters.insert(name.into(), parameter(choice));
    set("timeout", ParameterChoice::Int64Param(1500));
    set("priority", ParameterChoice::Uint64Param(2));
    set("sequence_id", ParameterChoice::StringParam("s".into()));
    set("sequence_end", ParameterChoice::BoolParam(true));
    set("ratio", ParameterChoice::DoubleParam(0.5));
    let top = [("classification".to_owned(), parameter(ParameterChoice::Int64Param(3)))].into();
    request.outputs.push(Output { name: "y".into(), parameters: top });
    let region = ParameterChoice::StringParam("r".into());
    let place = [
        ("shared_memory_region".to_owned(), parameter(region)),
        ("shared_memory_byte_size".to_owned(), parameter(ParameterChoice::Int64Param(64))),
    ];
    request.outputs.push(Output { name: "z".into(), parameters: place.into() });
    let decoded = decode(&request).unwrap();
    assert_eq!(decoded.id.as_deref(), Some("7"));
    assert_eq!(decoded.timeout.map(|timeout| timeout.as_micros()), Some(1500));
    assert_eq!(decoded.priority, 2);
    assert!(decoded.sequence.is_some_and(|sequence| sequence.end && !sequence.start));
    assert_eq!(decoded.parameters.get("ratio"), Some(&Parameter::Float(0.5)));
    let outputs = decoded.outputs.unwrap();
    assert_eq!((outputs[0].name.as_str(), outputs[0].classification), ("y", Some(3)));
    let slice = outputs[1].shared.as_ref().unwrap();
    assert_eq!((slice.region.as_str(), slice.offset, slice.byte_size), ("r", 0, 64));
}

#[test]
fn what_is_refused() {
    let floats = |values: &[f32]| pb::InferTensorContents {
        fp32_contents: values.to_vec(),
        ..pb::InferTensorContents::default()
    };
    let bytes_of = |input: Input, raw: &[&[u8]]| Request {
        inputs: vec![input],
        raw: raw.iter().map(|raw| raw.to_vec()).collect(),
        ..Request::default()
    };
    let both = Input { contents: Some(floats(&[1.0])), ..input("x", "FP32", &[1]) };
    let many = Request { inputs: vec![input("x", "FP32", &[0]); 300], ..Request::default() };
    for (request, want) in [
        (
            bytes_of(both, &[&[0; 4]]),
            "input \"x\": has contents, but the message has raw_input_contents; send one of them",
        ),
        (
            typed("FP32", &[2], floats(&[1.0])),
            "input \"x\": FP32 of shape [2] takes 8 bytes, got 4",
        ),
        (
            typed("INT32", &[1], floats(&[1.0])),
            "input \"x\": has fp32_contents, but INT32 takes int_contents",
        ),
        (
            typed("FP16", &[1], floats(&[1.0])),
            "input \"x\": FP16 has no typed contents; send it in raw_input_contents",
        ),
        (
            typed("INT8", &[1], pb::InferTensorContents { int_contents: vec![128], ..floats(&[]) }),
            "input \"x\": element 0 is out of range for INT8",
        ),
        (
            typed(
                "INT8",
                &[1],
                pb::InferTensorContents { int_contents: vec![1, 2], ..floats(&[]) },
            ),
            "input \"x\": int_contents has more than 1 elements",
        ),
        (bytes_of(input("x", "FP32", &[-1]), &[]), "input 0: a dimension of \"shape\" is negative"),
        (
            bytes_of(input("x", "FP32", &[i64::MAX, 2]), &[]),
            "input 0: shape [9223372036854775807, 2] has more than the 1073741824 elements that a tensor may have",
        ),
        (
            bytes_of(input("x", "FP32", &[1; 33]), &[]),
            "input 0: \"shape\" may have at most 32 dimensions",
        ),
        (
            bytes_of(input("", "F", &[1]), &[]),
            "input 0: \"F\" is not a datatype; the datatypes are BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64 and BYTES",
        ),
        (bytes_of(input("x", "", &[1]), &[]), "input 0: has no \"datatype\""),
        (
            bytes_of(input("x", "FP32", &[1]), &[&[0; 4], &[0; 4]]),
            "there are 1 raw_input_contents more than inputs that take them",
        ),
        (
            bytes_of(input("x", "FP32", &[1]), &[]),
            "input \"x\": FP32 of shape [1] takes 4 bytes, got 0",
        ),
        (many, "\"inputs\" may have at most 256 members"),
    ] {
        let error = decode(&request).expect_err(want);
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidInput, want));
    }
}

#[test]
fn a_flood_of_members_is_not_kept() {
    let flood: Vec<u8> = [5 << 3 | 2, 0].repeat(1 << 20);
    let message = ModelInferRequest::decode(Bytes::from(flood)).unwrap();
    assert!(message.inputs.len() <= 257);
    assert!(message.decode_infer(&WireLimits::default()).is_err());
}

#[test]
fn replies_read_back() {
    let scores = Tensor::from_vec(&[1, 3], vec![0.5f32, 2.0, 1.0]).unwrap();
    let labels = Tensor::from_strings(&[1], ["ab"].into_iter().collect()).unwrap();
    let data = scores.bytes().unwrap().as_ptr();
    let outputs = [("scores".to_owned(), scores), ("label".to_owned(), labels)];
    let reply =
        InferReply { model_name: "m", model_version: 4, variant: Some("b"), outputs: &outputs };
    let request = InferRequest { id: Some("7".into()), ..InferRequest::default() };
    let encoded = encode_infer(&reply, &request, &[("last", true)], &NoSharedMemory).unwrap();
    assert_eq!(encoded.raw_contents[0].as_ptr(), data, "copied");
    let bytes = encoded.encode_to_vec();
    assert_eq!(bytes.len(), encoded.encoded_len());
    let response = Response::decode(bytes.as_slice()).unwrap();
    let parameters = [
        ("version".to_owned(), parameter(ParameterChoice::Int64Param(4))),
        ("variant".to_owned(), parameter(ParameterChoice::StringParam("b".into()))),
        ("last".to_owned(), parameter(ParameterChoice::BoolParam(true))),
    ];
    let want = Response {
        model_name: "m".into(),
        model_version: "4".into(),
        id: "7".into(),
        parameters: parameters.into(),
        outputs: vec![input("scores", "FP32", &[1, 3]), input("label", "BYTES", &[1])],
        raw: vec![[0.5f32, 2.0, 1.0].map(f32::to_le_bytes).concat(), b"\x02\0\0\0ab".to_vec()],
    };
    assert_eq!(response, want);
}
