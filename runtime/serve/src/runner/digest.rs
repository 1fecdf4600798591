use mortise_types::{
    Assets, Attribute, DType, GraphBody, GraphDef, NodeDef, Tensor, TensorSpec, ValueDef, ValueId,
    ValueSource, WeightRef,
};
use sha2::{Digest, Sha256};

/// A digest of everything that decides what a graph computes: structure,
/// attributes, constants, and the digests of the assets it reads. Names that
/// only serve messages count too, since an error must name its own model's
/// nodes.
pub(super) fn graph_digest(def: &GraphDef, assets: &Assets) -> [u8; 32] {
    let mut writer = Writer { hash: Sha256::new(), assets };
    writer.count(def.values.len());
    def.values.iter().for_each(|value| writer.value(value));
    writer.body(&def.body);
    writer.count(def.inputs.len());
    def.inputs.iter().for_each(|spec| writer.spec(spec));
    writer.count(def.output_names.len());
    def.output_names.iter().for_each(|name| writer.bytes(name.as_bytes()));
    writer.hash.finalize().into()
}

/// Writes each field with its length or a tag, so that two different graphs
/// never write the same bytes.
struct Writer<'a> {
    hash: Sha256,
    assets: &'a Assets,
}

impl Writer<'_> {
    fn count(&mut self, count: usize) {
        self.hash.update((count as u64).to_le_bytes());
    }

    fn tag(&mut self, tag: u8) {
        self.hash.update([tag]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.hash.update(bytes);
    }

    fn dtype(&mut self, dtype: DType) {
        self.hash.update(dtype.onnx().to_le_bytes());
    }

    fn spec(&mut self, spec: &TensorSpec) {
        self.bytes(spec.name.as_bytes());
        self.dtype(spec.dtype);
        self.count(spec.shape.len());
        spec.shape.iter().for_each(|dim| self.hash.update(dim.to_le_bytes()));
    }

    fn value(&mut self, value: &ValueDef) {
        self.bytes(value.name.as_bytes());
        match &value.source {
            ValueSource::Input => self.tag(0),
            ValueSource::Weight(weight) => {
                self.tag(1);
                self.weight(weight);
            }
            ValueSource::Constant(tensor) => {
                self.tag(2);
                self.tensor(tensor);
            }
            ValueSource::Node => self.tag(3),
        }
    }

    fn weight(&mut self, weight: &WeightRef) {
        // A missing asset is an error of planning; here its name stands for it.
        let asset = self.assets.get(&weight.asset).map_or(&*weight.asset, |asset| &*asset.digest);
        self.bytes(asset.as_bytes());
        self.hash.update(weight.offset.to_le_bytes());
        self.hash.update(weight.length.to_le_bytes());
        self.dtype(weight.dtype);
        self.shape(&weight.shape);
    }

    fn shape(&mut self, shape: &[usize]) {
        self.count(shape.len());
        shape.iter().for_each(|&dim| self.count(dim));
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.dtype(tensor.dtype());
        self.shape(tensor.shape());
        if let Some(bytes) = tensor.bytes() {
            return self.bytes(bytes);
        }
        let Ok(strings) = tensor.strings() else { return };
        strings.offsets().iter().for_each(|offset| self.hash.update(offset.to_le_bytes()));
        self.bytes(strings.bytes());
    }

    fn body(&mut self, body: &GraphBody) {
        self.ids(&body.inputs);
        self.count(body.nodes.len());
        body.nodes.iter().for_each(|node| self.node(node));
        self.ids(&body.outputs);
    }

    fn ids(&mut self, ids: &[ValueId]) {
        self.count(ids.len());
        ids.iter().for_each(|id| self.hash.update(id.0.to_le_bytes()));
    }

    fn optional_ids(&mut self, ids: &[Option<ValueId>]) {
        self.count(ids.len());
        for id in ids {
            self.tag(u8::from(id.is_some()));
            self.hash.update(id.map_or(0, |id| id.0).to_le_bytes());
        }
    }

    fn node(&mut self, node: &NodeDef) {
        self.bytes(node.domain.as_bytes());
        self.bytes(node.op.as_bytes());
        self.hash.update(node.opset.to_le_bytes());
        self.bytes(node.name.as_bytes());
        self.optional_ids(&node.inputs);
        self.count(node.attributes.len());
        for (name, attribute) in &node.attributes {
            self.bytes(name.as_bytes());
            self.attribute(attribute);
        }
        self.optional_ids(&node.outputs);
    }

    fn attribute(&mut self, attribute: &Attribute) {
        match attribute {
            Attribute::Int(value) => self.scalar(0, &value.to_le_bytes()),
            Attribute::Float(value) => self.scalar(1, &value.to_bits().to_le_bytes()),
            Attribute::String(value) => self.scalar(2, value),
            Attribute::Tensor(tensor) => {
                self.tag(3);
                self.tensor(tensor);
            }
            Attribute::Graph(body) => {
                self.tag(4);
                self.body(body);
            }
            Attribute::Ints(values) => self.list(5, values, |w, v| w.hash.update(v.to_le_bytes())),
            Attribute::Floats(values) => {
                self.list(6, values, |w, v| w.hash.update(v.to_bits().to_le_bytes()));
            }
            Attribute::Strings(values) => self.list(7, values, |w, v| w.bytes(v)),
            Attribute::Tensors(values) => self.list(8, values, Self::tensor),
        }
    }

    fn scalar(&mut self, tag: u8, bytes: &[u8]) {
        self.tag(tag);
        self.bytes(bytes);
    }

    fn list<T>(&mut self, tag: u8, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.tag(tag);
        self.count(items.len());
        items.iter().for_each(|item| write(self, item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::relu_graph;
    use mortise_types::{Asset, Bytes, Shape};
    use std::collections::BTreeMap;

    fn assets(digest: &str) -> Assets {
        let asset = Asset { digest: digest.into(), bytes: Bytes::new() };
        Assets::new(BTreeMap::from([("w".to_string(), asset)]))
    }

    #[test]
    fn whatever_changes_the_answer_changes_the_digest() {
        let base = relu_graph();
        let weight = WeightRef {
            asset: "w".into(),
            offset: 0,
            length: 4,
            dtype: DType::F32,
            shape: Shape::from_slice(&[1]),
        };
        let changed = |change: fn(&mut GraphDef)| {
            let mut def = base.clone();
            change(&mut def);
            def
        };
        let weighted = |offset| {
            let mut def = base.clone();
            let source = ValueSource::Weight(WeightRef { offset, ..weight.clone() });
            def.values.push(ValueDef { name: "w".into(), source });
            def
        };
        let variants = [
            (base.clone(), assets("a")),
            (changed(|def| def.body.nodes[0].op = "Neg".into()), assets("a")),
            (changed(|def| def.body.nodes[0].opset = 13), assets("a")),
            (changed(|def| def.output_names[0] = "other".into()), assets("a")),
            (changed(|def| def.inputs[0].dtype = DType::F64), assets("a")),
            (
                changed(|def| {
                    def.body.nodes[0].attributes.push(("k".into(), Attribute::Ints(vec![1])));
                }),
                assets("a"),
            ),
            (
                changed(|def| {
                    def.body.nodes[0].attributes.push(("k".into(), Attribute::Int(1)));
                }),
                assets("a"),
            ),
            (weighted(0), assets("a")),
            (weighted(0), assets("b")),
            (weighted(4), assets("a")),
        ];
        let digests: Vec<_> =
            variants.iter().map(|(def, files)| graph_digest(def, files)).collect();
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest), "variant {index} collides");
        }
        assert_eq!(graph_digest(&base, &assets("a")), graph_digest(&base.clone(), &assets("b")));
    }
}
