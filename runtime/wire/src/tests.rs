use crate::*;
use bytes::Bytes;
use mortise_types::{DType, ErrorKind, Result, Signature, Tensor, TensorSpec};

const DTYPES: [DType; 14] = [
    DType::Bool,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
    DType::String,
];

fn decode(body: &[u8], header_length: Option<usize>) -> Result<InferRequest> {
    let body = Bytes::copy_from_slice(body);
    decode_infer(&body, header_length, None, &WireLimits::default())
}

fn json(body: &str) -> Result<InferRequest> {
    decode(body.as_bytes(), None)
}

fn random_tensor(random: &mut fastrand::Rng, dtype: DType) -> Tensor {
    let shape: Vec<usize> = (0..random.usize(0..4)).map(|_| random.usize(0..5)).collect();
    let count: usize = shape.iter().product();
    match dtype {
        DType::String => {
            let item = |random: &mut fastrand::Rng| -> String {
                (0..random.usize(0..6)).map(|_| random.char(..)).collect()
            };
            let strings = (0..count).map(|_| item(random)).collect();
            Tensor::from_strings(&shape, strings).unwrap()
        }
        DType::Bool => {
            Tensor::from_bools(&shape, (0..count).map(|_| random.u8(0..2)).collect()).unwrap()
        }
        _ => {
            let len = dtype.byte_len(count).unwrap();
            let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
            Tensor::from_bytes(dtype, &shape, bytes.into()).unwrap()
        }
    }
}

/// Same values; all NaNs are one, as JSON has but one.
fn same(a: &Tensor, b: &Tensor) -> bool {
    let values = match a.dtype() {
        DType::String => a.strings().unwrap() == b.strings().unwrap(),
        DType::F32 => {
            let bits = |t: &Tensor| -> Vec<u32> {
                t.as_slice::<f32>().unwrap().iter().map(|v| (v + 0.0 * v).to_bits()).collect()
            };
            let nan = |bits: Vec<u32>| -> Vec<Option<u32>> {
                bits.into_iter().map(|b| (!f32::from_bits(b).is_nan()).then_some(b)).collect()
            };
            nan(bits(a)) == nan(bits(b))
        }
        DType::F64 => {
            let bits = |t: &Tensor| -> Vec<Option<u64>> {
                let values = t.as_slice::<f64>().unwrap();
                values.iter().map(|v| (!v.is_nan()).then_some(v.to_bits())).collect()
            };
            bits(a) == bits(b)
        }
        _ => a.bytes() == b.bytes(),
    };
    a.dtype() == b.dtype() && a.shape() == b.shape() && values
}

/// Encodes tensors as a reply and turns that into a request: both spell tensors
/// the same way.
fn as_request(tensors: &[(String, Tensor)], wishes: &InferRequest) -> (Vec<u8>, Option<usize>) {
    let reply =
        InferReply { model_name: "m\"1\n", model_version: 3, variant: None, outputs: tensors };
    let encoded = encode_infer(&reply, wishes, &NoSharedMemory).unwrap();
    let body = encoded.segments.concat();
    let json_length = encoded.header_length.unwrap_or(body.len());
    let text = std::str::from_utf8(&body[..json_length]).unwrap();
    let text = text.replacen("\"outputs\":[", "\"inputs\":[", 1);
    let header_length = encoded.header_length.map(|_| text.len());
    ([text.as_bytes(), &body[json_length..]].concat(), header_length)
}

#[test]
fn random_tensors_come_back_as_they_went_out() {
    let mut random = fastrand::Rng::with_seed(3);
    for round in 0..3000 {
        let tensors: Vec<(String, Tensor)> = (0..random.usize(1..4))
            .map(|index| {
                let dtype = random.choice(DTYPES).unwrap();
                (format!("t{index}"), random_tensor(&mut random, dtype))
            })
            .collect();
        let wish = |random: &mut fastrand::Rng, (name, tensor): &(String, Tensor)| {
            let binary_only = matches!(tensor.dtype(), DType::F16 | DType::BF16);
            RequestedOutput {
                name: name.clone(),
                binary: Some(binary_only || random.bool()),
                ..RequestedOutput::default()
            }
        };
        let outputs = tensors.iter().map(|tensor| wish(&mut random, tensor)).collect();
        let wishes = InferRequest {
            id: Some(format!("id \\ {round}")),
            outputs: Some(outputs),
            ..InferRequest::default()
        };
        let (body, header_length) = as_request(&tensors, &wishes);
        let request = decode(&body, header_length).unwrap();
        assert_eq!(request.id, wishes.id);
        assert_eq!(request.inputs.len(), tensors.len());
        for (input, (name, tensor)) in request.inputs.iter().zip(&tensors) {
            assert_eq!(&input.name, name);
            assert!(same(&input.tensor, tensor), "round {round}: {:?} {tensor:?}", input.tensor);
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let mut random = fastrand::Rng::with_seed(5);
    let wishes = InferRequest { binary_output_default: true, ..InferRequest::default() };
    for _ in 0..3000 {
        let dtype = random.choice(DTYPES).unwrap();
        let tensors = [("x".to_owned(), random_tensor(&mut random, dtype))];
        let (mut body, header_length) = as_request(&tensors, &wishes);
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..body.len());
            match random.u8(0..3) {
                0 => body[at] = random.u8(..),
                1 => body.truncate(at.max(1)),
                _ => body.insert(at, random.choice(*b"[]{},:\"0-eN\\").unwrap()),
            }
        }
        let [low, high] = u16::try_from(header_length.unwrap_or(0)).unwrap().to_le_bytes();
        for mode in 0..3 {
            fuzz_decode(&[&[mode, low, high], body.as_slice()].concat());
        }
    }
}

#[test]
fn members_come_in_any_order_and_data_flat_or_nested() {
    let want = Tensor::from_vec(&[2, 2], vec![1.0f32, 2.5, -3.0, 4.0]).unwrap();
    for text in [
        r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2.5,-3,4e0]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[-3,4]]}]}"#,
        r#"{"inputs":[{"data":[[1,2.5],[-3,4]],"datatype":"FP32","shape":[2,2],"name":"x"}]}"#,
        r#"{"inputs":[{"datatype":"FP32","data":[1,2.5,-3,4],"shape":[2,2],"name":"x"}]}"#,
        r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[[1,2.5,-3,4]]]}]}"#,
        r#" { "extra":[{"a":null}],"id":null, "outputs":null, "parameters":null, "inputs" : [ {
            "name":"x", "shape":[ 2 , 2 ],"parameters":{"content_type":"np"},"datatype":"FP32",
            "data":[ 1 , 2.5 , -3 , 4 ] } ] } "#,
    ] {
        let request = json(text).unwrap();
        assert_eq!(request.inputs[0].name, "x", "{text}");
        assert!(same(&request.inputs[0].tensor, &want), "{text}");
        assert_eq!((request.outputs, request.id), (None, None));
    }
}

#[test]
fn values_of_every_json_type() {
    let strings = json(
        r#"{"inputs":[{"name":"s","shape":[3],"datatype":"BYTES","data":["","é\n","\ud83d\ude00"]}]}"#,
    )
    .unwrap();
    let got: Vec<&[u8]> = strings.inputs[0].tensor.strings().unwrap().iter().collect();
    assert_eq!(got, [b"".as_slice(), "é\n".as_bytes(), "😀".as_bytes()]);
    let bools =
        json(r#"{"inputs":[{"name":"b","shape":[2],"datatype":"BOOL","data":[true,false]}]}"#);
    assert_eq!(bools.unwrap().inputs[0].tensor.bool_bytes().unwrap(), [1, 0]);
    let floats = json(
        r#"{"inputs":[{"name":"f","shape":[3],"datatype":"FP64","data":[NaN,Infinity,-Infinity]}]}"#,
    )
    .unwrap();
    let floats = floats.inputs[0].tensor.as_slice::<f64>().unwrap();
    assert!(floats[0].is_nan() && floats[1] == f64::INFINITY && floats[2] == f64::NEG_INFINITY);
    let scalar = json(r#"{"inputs":[{"name":"k","shape":[],"datatype":"INT64","data":[7]}]}"#);
    assert_eq!(scalar.unwrap().inputs[0].tensor.as_slice::<i64>().unwrap(), [7]);
    let empty = json(r#"{"inputs":[{"name":"k","shape":[0,3],"datatype":"INT64","data":[]}]}"#);
    assert_eq!(empty.unwrap().inputs[0].tensor.shape(), [0, 3]);
}

#[test]
fn parameters_are_kept_and_understood() {
    let request = json(
        r#"{"inputs":[],"parameters":{"timeout":1500,"priority":2,"sequence_id":9,
            "sequence_start":true,"sequence_end":false,"binary_data_output":true,
            "colour":"red","rate":0.5}}"#,
    )
    .unwrap();
    assert_eq!(request.timeout, Some(std::time::Duration::from_micros(1500)));
    assert_eq!(request.priority, 2);
    let sequence = Sequence { id: SequenceId::Number(9), start: true, end: false };
    assert_eq!(request.sequence, Some(sequence));
    assert!(request.binary_output_default);
    assert_eq!(request.parameters.get("colour"), Some(&Parameter::String("red".into())));
    assert_eq!(request.parameters.get("rate"), Some(&Parameter::Float(0.5)));
    assert_eq!(request.parameters.iter().len(), 8);
    let none = json(r#"{"inputs":[],"parameters":{"timeout":0,"sequence_id":""}}"#).unwrap();
    assert_eq!((none.timeout, none.sequence), (None, None));
}

#[test]
fn binary_tensors_borrow_from_the_body() {
    let header = br#"{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#;
    // 64-byte aligned memory, with the JSON padded so that the data is aligned.
    let mut json = header.to_vec();
    json.resize(header.len().next_multiple_of(64), b' ');
    let header_length = json.len();
    let mut words = vec![0u64; (header_length + 16) / 8];
    let bytes: &mut [u8] =
        &mut words.iter_mut().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    bytes[..header_length].copy_from_slice(&json);
    bytes[header_length + 12..].copy_from_slice(&1.5f32.to_le_bytes());
    let body = Bytes::copy_from_slice(bytes);
    let request = decode_infer(&body, Some(header_length), None, &WireLimits::default()).unwrap();
    let tensor = &request.inputs[0].tensor;
    assert_eq!(tensor.as_slice::<f32>().unwrap(), [0.0, 0.0, 0.0, 1.5]);
    let data = body[header_length..].as_ptr();
    if (data as usize).is_multiple_of(4) {
        assert_eq!(tensor.bytes().unwrap().as_ptr(), data);
    }
}

fn raw(spec: TensorSpec, body: &'static [u8]) -> Result<InferRequest> {
    let signature = Signature { inputs: vec![spec], outputs: Vec::new() };
    decode_infer(&Bytes::from_static(body), Some(0), Some(&signature), &WireLimits::default())
}

#[test]
fn raw_requests_take_their_shape_from_the_signature() {
    let request = raw(TensorSpec::new("x", DType::U16, &[-1, 2]), &[0; 12]).unwrap();
    assert_eq!(request.inputs[0].name, "x");
    assert_eq!(request.inputs[0].tensor.shape(), [3, 2]);
    assert!(request.binary_output_default);
    let text = raw(TensorSpec::new("s", DType::String, &[-1]), b"hello").unwrap();
    let strings = text.inputs[0].tensor.strings().unwrap();
    assert_eq!(strings.iter().collect::<Vec<_>>(), [b"hello"]);
}

#[test]
fn raw_requests_that_do_not_fit() {
    for (spec, body, want) in [
        (
            TensorSpec::new("x", DType::F32, &[-1, 2]),
            b"123456789012".as_slice(),
            "input \"x\": expects FP32 of shape [-1, 2], got 3 elements",
        ),
        (
            TensorSpec::new("x", DType::F32, &[-1]),
            b"12345",
            "input \"x\": 5 bytes are not a whole number of FP32 elements of 4 bytes",
        ),
        (
            TensorSpec::new("x", DType::F32, &[-1, -1]),
            b"1234",
            "input \"x\": a raw binary request can have one variable dimension, the shape \
             [-1, -1] has 2; send JSON with the shape",
        ),
        (
            TensorSpec::new("x", DType::Bool, &[-1]),
            b"\x00\x02",
            "input \"x\": BOOL takes bytes that are 0 or 1, got 2 at element 1",
        ),
    ] {
        let error = raw(spec, body).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidInput, want));
    }
    let two = Signature {
        inputs: vec![
            TensorSpec::new("a", DType::F32, &[1]),
            TensorSpec::new("b", DType::F32, &[1]),
        ],
        outputs: Vec::new(),
    };
    let body = Bytes::from_static(b"1234");
    let error = decode_infer(&body, Some(0), Some(&two), &WireLimits::default()).unwrap_err();
    let want = "a raw binary request needs a model with one input, this one has 2";
    assert_eq!(error.message(), want);
}

/// One input with the members given, wrapped into a request.
fn with_input(members: &str) -> String {
    format!("{{\"inputs\":[{{{members}}}]}}")
}

#[test]
fn every_refusal_says_what_is_wrong() {
    let one = |members: &str| with_input(members);
    let fp32 = |rest: &str| with_input(&format!(r#""name":"x","datatype":"FP32",{rest}"#));
    let typed = |dtype: &str, data: &str| {
        with_input(&format!(r#""name":"x","datatype":"{dtype}","shape":[2],"data":{data}"#))
    };
    let cases: Vec<(String, &str)> = vec![
        ("".into(), "the request has no body; send a JSON object with \"inputs\""),
        ("  ".into(), "the request is not valid JSON: expected a value, but it ends at byte 2"),
        ("[]".into(), "the request must be a JSON object, got an array"),
        ("{".into(), "the request is not valid JSON: expected a string, but it ends at byte 1"),
        ("{}".into(), "the request has no \"inputs\""),
        (
            "{\"inputs\":[]} x".into(),
            "the request is not valid JSON: expected the end of the JSON at byte 14",
        ),
        ("{\"inputs\":{}}".into(), "\"inputs\" must be an array, got an object"),
        ("{\"inputs\":[1]}".into(), "member 0 of \"inputs\" must be an object, got a number"),
        ("{\"inputs\":[],\"inputs\":[]}".into(), "\"inputs\" is given twice in the request"),
        ("{\"id\":7,\"inputs\":[]}".into(), "\"id\" must be a string, got a number"),
        ("{\"inputs\":[],\"outputs\":[{}]}".into(), "output 0: has no \"name\""),
        (
            "{\"inputs\":[],\"outputs\":[{\"name\":\"y\",\"parameters\":{\"binary_data\":1}}]}"
                .into(),
            "output \"y\": binary_data must be a boolean, got a number",
        ),
        (
            "{\"inputs\":[],\"outputs\":[{\"name\":\"y\",\"parameters\":{\"classification\":-1}}]}"
                .into(),
            "output \"y\": classification must be a whole number that is not negative",
        ),
        (
            "{\"inputs\":[],\"parameters\":[]}".into(),
            "\"parameters\" must be an object, got an array",
        ),
        (
            "{\"inputs\":[],\"parameters\":{\"a\":[]}}".into(),
            "parameter \"a\" must be a boolean, a number or a string, got an array",
        ),
        (
            "{\"inputs\":[],\"parameters\":{\"a\":1,\"a\":2}}".into(),
            "parameter \"a\" is given twice",
        ),
        (
            "{\"inputs\":[],\"parameters\":{\"timeout\":-1}}".into(),
            "parameter \"timeout\" must be a whole number that is not negative, got -1",
        ),
        (
            "{\"inputs\":[],\"parameters\":{\"binary_data_output\":\"yes\"}}".into(),
            "parameter \"binary_data_output\" must be true or false, got \"yes\"",
        ),
        (one(""), "input 0: has no \"name\""),
        (one(r#""name":"x","shape":[1],"data":[1]"#), "input \"x\": has no \"datatype\""),
        (one(r#""name":"x","datatype":"FP32","data":[1]"#), "input \"x\": has no \"shape\""),
        (fp32(r#""shape":[1]"#), "input \"x\": has neither \"data\" nor binary_data_size"),
        (
            fp32(r#""shape":[1],"data":[1],"parameters":{"binary_data_size":4}"#),
            "input \"x\": has both \"data\" and binary_data_size; send one",
        ),
        (
            fp32(r#""shape":[1],"parameters":{"binary_data_size":4}"#),
            "input \"x\": has binary_data_size, but there is no Inference-Header-Content-Length",
        ),
        (
            one(r#""name":"x","datatype":"FLOAT""#),
            "input \"x\": \"FLOAT\" is not a datatype; the datatypes are BOOL, UINT8, UINT16, \
             UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64 and BYTES",
        ),
        (
            fp32(r#""shape":[-1,2],"data":[1,2]"#),
            "input \"x\": a dimension of \"shape\" must be a whole number that is not negative",
        ),
        (
            fp32(r#""shape":[4611686018427387904,4],"data":[1]"#),
            "input \"x\": shape [4611686018427387904, 4] has more than the 1073741824 elements \
             that a tensor may have",
        ),
        (fp32(r#""shape":[3],"data":[1,2]"#), "input \"x\": shape [3] takes 3 elements, got 2"),
        (
            fp32(r#""shape":[2,2],"data":[[1,2,3,4]]"#),
            "input \"x\": shape [2, 2] does not fit data nested as [1, 4]",
        ),
        (
            fp32(r#""shape":[2,2],"data":[[1,2,3],[4]]"#),
            "input \"x\": data is ragged: arrays at level 2 have 3 and 1 members",
        ),
        (
            fp32(r#""shape":[2],"data":[1,[2]]"#),
            "input \"x\": data mixes arrays and elements at one level, at element 1",
        ),
        (
            fp32(r#""shape":[2],"data":[[1],2]"#),
            "input \"x\": data mixes arrays and elements at one level, at element 1",
        ),
        (fp32(r#""shape":[1],"data":7"#), "input \"x\": data must be an array, got a number"),
        (typed("FP32", r#"[1,"2"]"#), "input \"x\": element 1 is a string, but FP32 takes numbers"),
        (typed("FP32", "[1,null]"), "input \"x\": element 1 is null, but FP32 takes numbers"),
        (
            typed("FP32", "[1e39,2]"),
            "input \"x\": element 0 is 1e39, which is out of range for FP32",
        ),
        (typed("INT64", "[1,2.5]"), "input \"x\": element 1 is 2.5, but INT64 takes whole numbers"),
        (
            typed("UINT8", "[1,256]"),
            "input \"x\": element 1 is 256, which is out of range for UINT8",
        ),
        (
            typed("BOOL", "[0,1]"),
            "input \"x\": element 0 is a number, but BOOL takes true or false",
        ),
        (typed("BYTES", "[1,2]"), "input \"x\": element 0 is a number, but BYTES takes strings"),
        (
            typed("FP16", "[1,2]"),
            "input \"x\": FP16 cannot be sent as JSON; send it as binary data (binary_data_size)",
        ),
        (
            typed("FP32", "[1,2"),
            "input \"x\": the request is not valid JSON: expected ',' or ']' at byte 64",
        ),
    ];
    for (body, want) in cases {
        let error = json(&body).expect_err(&body);
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidInput, want), "{body}");
    }
}

/// One region, "r".
struct OneRegion(std::sync::Mutex<Vec<u8>>);

impl SharedMemory for OneRegion {
    fn read(&self, slice: &RegionSlice) -> Result<Bytes> {
        let range = slice.offset as usize..(slice.offset + slice.byte_size) as usize;
        Ok(Bytes::copy_from_slice(&self.0.lock().unwrap()[range]))
    }

    fn write(&self, slice: &RegionSlice, bytes: &[u8]) -> Result<()> {
        let start = slice.offset as usize;
        self.0.lock().unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn tensors_in_shared_memory() {
    let memory = OneRegion(vec![0, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0].into());
    let place = |offset, size| {
        format!(
            r#""parameters":{{"shared_memory_region":"r","shared_memory_offset":{offset},"shared_memory_byte_size":{size}}}"#
        )
    };
    let body = format!(
        r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32",{}}}],"outputs":[{{"name":"x",{}}}]}}"#,
        place(4, 4),
        place(8, 8)
    );
    let mut request = json(&body).unwrap();
    assert_eq!((request.inputs.len(), request.shared_bytes()), (0, 4));
    request.read_shared(&memory).unwrap();
    let x = request.inputs.remove(0);
    assert_eq!(x.tensor.as_slice::<f32>().unwrap(), [1.0]);
    let outputs = [(x.name, x.tensor)];
    let reply = InferReply { model_name: "m", model_version: 1, variant: None, outputs: &outputs };
    let encoded = encode_infer(&reply, &request, &memory).unwrap().segments.concat();
    let want = r#""shape":[1]}]}"#;
    assert!(encoded.ends_with(want.as_bytes()), "{}", String::from_utf8_lossy(&encoded));
    assert_eq!(memory.0.lock().unwrap()[8..12], 1f32.to_le_bytes());
    let mut refused = json(&body).unwrap();
    assert_eq!(
        refused.read_shared(&NoSharedMemory).unwrap_err().message(),
        "input \"x\": shared memory is not served here; send the data itself"
    );
}

#[test]
fn shared_memory_in_part() {
    for (parameters, want) in [
        (r#"{"shared_memory_region":"r"}"#, "shared_memory_region without shared_memory_byte_size"),
        (
            r#"{"shared_memory_byte_size":4}"#,
            "shared_memory_byte_size without shared_memory_region",
        ),
        (r#"{"shared_memory_offset":4}"#, "shared_memory_offset without shared_memory_region"),
    ] {
        let body = with_input(&format!(
            r#""name":"x","shape":[1],"datatype":"FP32","parameters":{parameters}"#
        ));
        let error = json(&body).unwrap_err();
        assert_eq!(error.message(), format!("input \"x\": has {want}"));
    }
    let both = with_input(
        r#""name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"shared_memory_region":"r","shared_memory_byte_size":4}"#,
    );
    let want = "input \"x\": has shared_memory_region and data; send one";
    assert_eq!(json(&both).unwrap_err().message(), want);
}

#[test]
fn binary_data_that_does_not_fit() {
    let cases: [(&str, usize, &[u8], &str); 8] = [
        (
            "FP32",
            8,
            &[0; 7],
            "input \"x\": has a binary_data_size of 8, but only 7 bytes are left in the body",
        ),
        ("FP32", 8, &[0; 9], "the body has 1 bytes more than its inputs' binary_data_size say"),
        ("FP32", 4, &[0; 4], "input \"x\": FP32 of shape [2] takes 8 bytes, got 4"),
        ("BOOL", 2, &[1, 7], "input \"x\": BOOL takes bytes that are 0 or 1, got 7 at element 1"),
        ("BYTES", 3, &[0; 3], "input \"x\": BYTES data ends inside the length of element 0"),
        (
            "BYTES",
            6,
            &[3, 0, 0, 0, b'a', b'b'],
            "input \"x\": element 0 of BYTES data has a length of 3 bytes, but only 2 follow",
        ),
        ("BYTES", 4, &[0; 4], "input \"x\": shape [2] takes 2 elements, got 1"),
        (
            "BYTES",
            5,
            &[0xff; 5],
            "input \"x\": element 0 of BYTES data has a length of 4294967295 bytes, but only 1 follow",
        ),
    ];
    for (dtype, size, tail, want) in cases {
        let header = with_input(&format!(
            r#""name":"x","datatype":"{dtype}","shape":[2],"parameters":{{"binary_data_size":{size}}}"#
        ));
        let body = [header.as_bytes(), tail].concat();
        let error = decode(&body, Some(header.len())).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidInput, want));
    }
    let error = decode(b"{}", Some(9)).unwrap_err();
    let want = "Inference-Header-Content-Length is 9, but the body has only 2 bytes";
    assert_eq!(error.message(), want);
}

#[test]
fn limits_are_named() {
    let limits = WireLimits {
        max_tensors: 1,
        max_rank: 2,
        max_elements: 4,
        max_depth: 8,
        max_parameters: 1,
        max_text_bytes: 4,
    };
    let input = |rest: &str| with_input(&format!(r#""name":"x","datatype":"INT8",{rest}"#));
    for (body, want) in [
        (
            r#"{"inputs":[],"outputs":[{"name":"a"},{"name":"b"}]}"#.to_owned(),
            "\"outputs\" may have at most 1 members",
        ),
        (input(r#""shape":[1,1,1]"#), "input \"x\": \"shape\" may have at most 2 dimensions"),
        (
            input(r#""shape":[5]"#),
            "input \"x\": shape [5] has more than the 4 elements that a tensor may have",
        ),
        (input(r#""data":[1,2,3,4,5]"#), "input \"x\": a tensor may have at most 4 elements"),
        (input(r#""data":[[[1]]]"#), "input \"x\": data is nested deeper than 2 levels"),
        (
            r#"{"a":[[[[[[[[1]]]]]]]]}"#.to_owned(),
            "the request's JSON is nested deeper than 8 levels",
        ),
        (r#"{"parameters":{"a":1,"b":2}}"#.to_owned(), "a request may have at most 1 parameters"),
        (r#"{"id":"12345"}"#.to_owned(), "\"id\" may have at most 4 bytes, got 5"),
    ] {
        let bytes = Bytes::from(body.clone());
        let error = decode_infer(&bytes, None, None, &limits).expect_err(&body);
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidInput, want));
    }
}

fn encode(outputs: &[(String, Tensor)], request: &InferRequest) -> Result<Encoded> {
    let reply = InferReply { model_name: "m", model_version: 2, variant: None, outputs };
    encode_infer(&reply, request, &NoSharedMemory)
}

#[test]
fn replies_spell_what_was_asked() {
    let scores = Tensor::from_vec(&[1, 3], vec![0.1f32, f32::NAN, -1e-7]).unwrap();
    let labels = Tensor::from_strings(&[1], ["a\"\u{1}é"].into_iter().collect()).unwrap();
    let outputs = [("scores".to_owned(), scores), ("label".to_owned(), labels)];
    let encoded = encode(&outputs, &InferRequest::default()).unwrap();
    assert_eq!(encoded.header_length, None);
    assert_eq!(
        std::str::from_utf8(&encoded.segments.concat()).unwrap(),
        r#"{"model_name":"m","model_version":"2","outputs":[{"name":"scores","datatype":"FP32","shape":[1,3],"data":[0.1,NaN,-1e-7]},{"name":"label","datatype":"BYTES","shape":[1],"data":["a\"\u0001é"]}]}"#
    );
    let binary = InferRequest {
        id: Some("7".into()),
        outputs: Some(vec![RequestedOutput {
            name: "scores".into(),
            binary: Some(true),
            classification: Some(2),
            ..RequestedOutput::default()
        }]),
        ..InferRequest::default()
    };
    let encoded = encode(&outputs[..1], &binary).unwrap();
    let body = encoded.segments.concat();
    let (json, tail) = body.split_at(encoded.header_length.unwrap());
    assert_eq!(
        std::str::from_utf8(json).unwrap(),
        r#"{"id":"7","model_name":"m","model_version":"2","outputs":[{"name":"scores","datatype":"BYTES","shape":[1,2],"parameters":{"binary_data_size":29}}]}"#
    );
    assert_eq!(tail, b"\x0a\0\0\x000.100000:0\x0b\0\0\x00-0.000000:2");
}

#[test]
fn generated_replies_are_plain() {
    let one = Tensor::from_strings(&[1, 1], ["a"].into_iter().collect()).unwrap();
    let two = Tensor::from_vec(&[2], vec![1i64, -2]).unwrap();
    let outputs = [("text".to_owned(), one), ("n".to_owned(), two)];
    let reply = InferReply { model_name: "m", model_version: 2, variant: None, outputs: &outputs };
    assert_eq!(
        encode_generated(&reply, Some("7")).unwrap(),
        br#"{"id":"7","model_name":"m","model_version":"2","text":"a","n":[1,-2]}"#.as_slice()
    );
}

#[test]
fn large_binary_outputs_are_shared() {
    let tensor = Tensor::from_vec(&[100_000], vec![1.0f32; 100_000]).unwrap();
    let data = tensor.bytes().unwrap().as_ptr();
    let wishes = InferRequest { binary_output_default: true, ..InferRequest::default() };
    let encoded = encode(&[("y".to_owned(), tensor.clone())], &wishes).unwrap();
    assert_eq!(encoded.segments.len(), 2);
    assert_eq!(encoded.segments[1].as_ptr(), data);
    assert_eq!(encoded.byte_len(), encoded.header_length.unwrap() + 400_000);
}

#[test]
fn replies_that_json_cannot_hold() {
    let half = Tensor::zeros(DType::F16, &[1]).unwrap();
    let bytes = Tensor::from_strings(&[1], [&[0xffu8]].into_iter().collect()).unwrap();
    let top =
        RequestedOutput { name: "y".into(), classification: Some(1), ..RequestedOutput::default() };
    let classify = InferRequest { outputs: Some(vec![top]), ..InferRequest::default() };
    for (tensor, request, want) in [
        (
            half,
            InferRequest::default(),
            "output \"y\": FP16 cannot be sent as JSON; ask for binary data (binary_data or \
             binary_data_output)",
        ),
        (
            bytes.clone(),
            InferRequest::default(),
            "output \"y\": element 0 is not UTF-8 and cannot be sent as JSON; ask for binary data \
             (binary_data or binary_data_output)",
        ),
        (bytes, classify, "output \"y\": classification takes numbers, this is BYTES"),
    ] {
        let error = encode(&[("y".to_owned(), tensor)], &request).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidInput, want));
    }
}

#[test]
fn small_bodies() {
    let signature = Signature {
        inputs: vec![TensorSpec::new("x", DType::F32, &[-1, 4])],
        outputs: vec![TensorSpec::new("y", DType::String, &[-1])],
    };
    let metadata =
        ModelMetadata { name: "m", versions: &[3], platform: "onnx", signature: &signature };
    let config = ModelConfig {
        name: "m",
        version: 3,
        platform: "onnx",
        signature: &signature,
        parameters: &[("plugin_digest", "sha256:0".to_owned())],
    };
    let server = ServerMetadata { name: "mortise", version: "1", extensions: &["a", "b"] };
    let index =
        [IndexEntry::new("m", Some(3), None), IndexEntry::new("n", None, Some("off".into()))];
    for (body, want) in [
        (server.body(), r#"{"name":"mortise","version":"1","extensions":["a","b"]}"#),
        (
            metadata.body(),
            r#"{"name":"m","versions":["3"],"platform":"onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}],"outputs":[{"name":"y","datatype":"BYTES","shape":[-1]}]}"#,
        ),
        (
            config.body(),
            r#"{"name":"m","platform":"onnx","backend":"onnx","version_policy":{"specific":{"versions":[3]}},"max_batch_size":0,"input":[{"name":"x","data_type":"TYPE_FP32","dims":[-1,4]}],"output":[{"name":"y","data_type":"TYPE_STRING","dims":[-1]}],"parameters":{"plugin_digest":{"string_value":"sha256:0"}}}"#,
        ),
        (
            index_body(&index),
            r#"[{"name":"m","version":"3","state":"READY","reason":""},{"name":"n","version":"","state":"UNAVAILABLE","reason":"off"}]"#,
        ),
        (model_ready_body("m", None), r#"{"name":"m","ready":true}"#),
        (model_ready_body("m", Some("why")), r#"{"name":"m","ready":false,"error":"why"}"#),
        (error_body("a \"b\""), r#"{"error":"a \"b\""}"#),
    ] {
        assert_eq!(std::str::from_utf8(&body).unwrap(), want);
    }
    let limits = WireLimits::default();
    for (body, want) in [
        ("", Some(false)),
        (" \n", Some(false)),
        ("{}", Some(false)),
        (r#"{"ready":true}"#, Some(true)),
        ("[]", None),
        (r#"{"ready":1}"#, None),
    ] {
        assert_eq!(wants_ready_only(body.as_bytes(), &limits).ok(), want, "{body}");
    }
}
