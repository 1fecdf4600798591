use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// Members of one kind that a request keeps. One more than requests may have,
/// so that a refusal can say that there are too many; what comes after that is
/// dropped as it arrives, and takes no memory.
const MAX_MEMBERS: usize = 257;

/// A request for an inference, cut into its members.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelInferRequest {
    pub model_name: String,
    /// Empty for the live version.
    pub model_version: String,
    pub(crate) id: String,
    pub(crate) parameters: Vec<Bytes>,
    pub(crate) inputs: Vec<Bytes>,
    pub(crate) outputs: Vec<Bytes>,
    pub(crate) raw_contents: Vec<Bytes>,
}

impl ModelInferRequest {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Bytes that take time to decode: all but raw contents.
    pub fn typed_bytes(&self) -> usize {
        self.inputs.iter().map(Bytes::len).sum()
    }

    fn members(&self) -> [(u32, &[Bytes]); 4] {
        [(4, &self.parameters), (5, &self.inputs), (6, &self.outputs), (7, &self.raw_contents)]
    }

    fn texts(&self) -> [(u32, &str); 3] {
        [(1, &self.model_name), (2, &self.model_version), (3, &self.id)]
    }
}

impl Message for ModelInferRequest {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        for (tag, text) in self.texts() {
            put_unless_empty(tag, text.as_bytes(), buf);
        }
        for (tag, members) in self.members() {
            members.iter().for_each(|member| put(tag, member, buf));
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        let list = match tag {
            1 => return encoding::string::merge(wire_type, &mut self.model_name, buf, context),
            2 => return encoding::string::merge(wire_type, &mut self.model_version, buf, context),
            3 => return encoding::string::merge(wire_type, &mut self.id, buf, context),
            4 => &mut self.parameters,
            5 => &mut self.inputs,
            6 => &mut self.outputs,
            7 => &mut self.raw_contents,
            _ => return encoding::skip_field(wire_type, tag, buf, context),
        };
        let mut member = Bytes::new();
        encoding::bytes::merge(wire_type, &mut member, buf, context)?;
        if list.len() < MAX_MEMBERS {
            list.push(member);
        }
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        let texts = self.texts();
        let texts = texts.iter().filter(|(_, text)| !text.is_empty());
        let lists = self.members();
        let members = lists.iter().flat_map(|(tag, list)| list.iter().map(|one| (*tag, one.len())));
        texts
            .map(|(tag, text)| (*tag, text.len()))
            .chain(members)
            .map(|(tag, length)| field_len(tag, length))
            .sum()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The answer to a [`ModelInferRequest`], encoded but for the data of its
/// outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelInferResponse {
    /// All fields but `raw_output_contents`.
    pub(crate) head: Bytes,
    pub(crate) raw_contents: Vec<Bytes>,
}

impl ModelInferResponse {
    /// What goes with an error in a stream.
    pub fn without_outputs(id: &str) -> Self {
        let mut head = Vec::new();
        put_unless_empty(3, id.as_bytes(), &mut head);
        Self { head: head.into(), raw_contents: Vec::new() }
    }
}

/// The number of `outputs`.
pub(crate) const OUTPUTS: u32 = 5;

/// The number of `raw_output_contents`.
const RAW_OUTPUT_CONTENTS: u32 = 6;

impl Message for ModelInferResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.head);
        self.raw_contents.iter().for_each(|raw| put(RAW_OUTPUT_CONTENTS, raw, buf));
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if wire_type != WireType::LengthDelimited {
            return encoding::skip_field(wire_type, tag, buf, context);
        }
        let mut member = Bytes::new();
        encoding::bytes::merge(wire_type, &mut member, buf, context)?;
        if tag == RAW_OUTPUT_CONTENTS {
            self.raw_contents.push(member);
        } else {
            // Its own memory again, so that many fields are not copied for each.
            let mut head = BytesMut::from(std::mem::take(&mut self.head));
            put(tag, &member, &mut head);
            self.head = head.freeze();
        }
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        let raw = self.raw_contents.iter();
        self.head.len() + raw.map(|raw| field_len(RAW_OUTPUT_CONTENTS, raw.len())).sum::<usize>()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Writes a field of bytes, text or a message.
pub(crate) fn put(tag: u32, value: &[u8], buf: &mut impl BufMut) {
    encoding::encode_key(tag, WireType::LengthDelimited, buf);
    encoding::encode_varint(value.len() as u64, buf);
    buf.put_slice(value);
}

/// The protocol leaves out what has its default value.
pub(crate) fn put_unless_empty(tag: u32, value: &[u8], buf: &mut impl BufMut) {
    if !value.is_empty() {
        put(tag, value, buf);
    }
}

/// Bytes that [`put`] writes.
pub(crate) fn field_len(tag: u32, length: usize) -> usize {
    encoding::key_len(tag) + encoding::encoded_len_varint(length as u64) + length
}
