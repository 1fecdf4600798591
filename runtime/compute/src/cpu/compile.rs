//! From a plan to steps with slot numbers, so that a run looks nothing up.

use crate::cpu::op::Operator;
use crate::cpu::registry;
use mortise_graph::Plan;
use mortise_types::{Attribute, Error, GraphBody, NodeDef, Result, Value, ValueId};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A body as a list of steps over a small set of slots.
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) slot_count: usize,
    /// Slot of each input; `None` when nothing reads it.
    pub(crate) inputs: Vec<Option<u32>>,
    pub(crate) outputs: Vec<Arg>,
    /// Values of the program around this one, and the slots they go to here.
    pub(crate) captures: Vec<(Arg, u32)>,
}

/// One operator with the places of its operands.
pub(crate) struct Step {
    pub(crate) op: Box<dyn Operator>,
    /// `Conv "conv1" (ai.onnx, opset 13)`, for messages.
    pub(crate) label: Box<str>,
    pub(crate) args: SmallVec<[Arg; 4]>,
    pub(crate) outputs: SmallVec<[Option<u32>; 2]>,
    /// Slots that only subgraphs of this step read, for the last time.
    pub(crate) drops: Vec<u32>,
    pub(crate) subgraphs: Vec<(Arc<GraphBody>, Program)>,
}

/// Where an operand comes from.
pub(crate) enum Arg {
    Absent,
    /// Somebody reads the slot again: share it.
    Shared(u32),
    /// The last use: move it out, so that it can be overwritten in place.
    Last(u32),
    Constant(Value),
}

/// The program of a plan, and the constants that it keeps as they are; what is
/// missing of them was packed by operators.
///
/// # Errors
/// `Unsupported` when an operator is missing; `InvalidInput` for attributes or
/// constants that do not fit.
pub(crate) fn compile(plan: &Plan) -> Result<(Program, HashSet<ValueId>)> {
    let compiler = Compiler { plan, kept: RefCell::default() };
    let program = compiler.program(&plan.body, &HashMap::new())?;
    Ok((program, compiler.kept.into_inner()))
}

struct Compiler<'a> {
    plan: &'a Plan,
    kept: RefCell<HashSet<ValueId>>,
}

/// Slots while a program is being laid out.
#[derive(Default)]
struct Slots {
    of_value: HashMap<ValueId, u32>,
    free: Vec<u32>,
    count: u32,
}

impl Slots {
    fn assign(&mut self, value: ValueId) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        });
        self.of_value.insert(value, slot);
        slot
    }

    fn release(&mut self, value: ValueId) -> Option<u32> {
        let slot = self.of_value.remove(&value)?;
        self.free.push(slot);
        Some(slot)
    }
}

/// For each value, the index of the last step that reads it; outputs of the
/// body are read after all steps.
type LastUse = HashMap<ValueId, usize>;

impl Compiler<'_> {
    fn program(&self, body: &GraphBody, outer: &HashMap<ValueId, u32>) -> Result<Program> {
        let last_use = self.last_uses(body);
        let mut slots = Slots::default();
        let captures = self.captures(body, outer, &mut slots);
        let inputs = body
            .inputs
            .iter()
            .map(|value| last_use.contains_key(value).then(|| slots.assign(*value)))
            .collect();
        let steps = body
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| self.step(node, index, &last_use, &mut slots))
            .collect::<Result<_>>()?;
        let outputs = self.outputs(body, &mut slots)?;
        Ok(Program { steps, slot_count: slots.count as usize, inputs, outputs, captures })
    }

    fn captures(
        &self,
        body: &GraphBody,
        outer: &HashMap<ValueId, u32>,
        slots: &mut Slots,
    ) -> Vec<(Arg, u32)> {
        let mut names: Vec<ValueId> = free_values(body).into_iter().collect();
        names.sort_unstable();
        names
            .into_iter()
            .filter_map(|value| Some((value, *outer.get(&value)?)))
            .map(|(value, slot)| (Arg::Shared(slot), slots.assign(value)))
            .collect()
    }

    fn step(
        &self,
        node: &NodeDef,
        index: usize,
        last_use: &LastUse,
        slots: &mut Slots,
    ) -> Result<Step> {
        let mut op = registry::build(node)?;
        let constants: Vec<Option<Value>> =
            node.inputs.iter().map(|input| self.constant((*input)?).cloned()).collect();
        op.prepare(&constants).map_err(|error| error.context(node.describe()))?;
        let subgraphs = self.subgraphs(node, &slots.of_value)?;
        let holds = |position: usize| op.holds(position);
        let (args, drops) = self.operands(node, index, (last_use, &holds), slots)?;
        let outputs = node
            .outputs
            .iter()
            .map(|output| output.filter(|v| last_use.contains_key(v)).map(|v| slots.assign(v)))
            .collect();
        let label = node.describe().into_boxed_str();
        Ok(Step { op, label, args, outputs, drops, subgraphs })
    }

    fn subgraphs(
        &self,
        node: &NodeDef,
        outer: &HashMap<ValueId, u32>,
    ) -> Result<Vec<(Arc<GraphBody>, Program)>> {
        subgraphs(node).map(|body| Ok((body.clone(), self.program(body, outer)?))).collect()
    }

    /// The operands, with the slots that end here released.
    fn operands(
        &self,
        node: &NodeDef,
        index: usize,
        (last_use, holds): (&LastUse, &dyn Fn(usize) -> bool),
        slots: &mut Slots,
    ) -> Result<(SmallVec<[Arg; 4]>, Vec<u32>)> {
        let captured: HashSet<ValueId> = subgraphs(node).flat_map(|b| free_values(b)).collect();
        let mut args = SmallVec::new();
        for (position, input) in node.inputs.iter().enumerate() {
            if holds(position) {
                args.push(Arg::Absent);
                continue;
            }
            let later = &node.inputs[position + 1..];
            let last = input.is_some_and(|value| {
                last_use.get(&value) == Some(&index)
                    && !captured.contains(&value)
                    && !later.contains(&Some(value))
            });
            args.push(self.operand(*input, last, slots)?);
        }
        let ended = captured.iter().filter(|value| last_use.get(value) == Some(&index));
        let drops = ended.filter_map(|value| slots.release(*value)).collect();
        // Released only now: an output must not share a slot with an operand
        // before the operand was moved out, which the executor does first.
        Ok((args, drops))
    }

    fn operand(&self, input: Option<ValueId>, last: bool, slots: &mut Slots) -> Result<Arg> {
        let Some(value) = input else { return Ok(Arg::Absent) };
        if let Some(constant) = self.constant(value) {
            self.kept.borrow_mut().insert(value);
            return Ok(Arg::Constant(constant.clone()));
        }
        let slot = slots.of_value.get(&value).copied();
        let slot = slot.ok_or_else(|| Error::internal(format!("value {} has no slot", value.0)))?;
        if last {
            slots.release(value);
            return Ok(Arg::Last(slot));
        }
        Ok(Arg::Shared(slot))
    }

    fn outputs(&self, body: &GraphBody, slots: &mut Slots) -> Result<Vec<Arg>> {
        let mut outputs = Vec::with_capacity(body.outputs.len());
        for (position, value) in body.outputs.iter().enumerate() {
            let last = !body.outputs[position + 1..].contains(value);
            outputs.push(self.operand(Some(*value), last, slots)?);
        }
        Ok(outputs)
    }

    fn constant(&self, value: ValueId) -> Option<&Value> {
        self.plan.constants.get(value.index())?.as_ref()
    }

    fn last_uses(&self, body: &GraphBody) -> LastUse {
        let mut uses = LastUse::new();
        for (index, node) in body.nodes.iter().enumerate() {
            uses.extend(node.inputs.iter().flatten().map(|value| (*value, index)));
            for inner in subgraphs(node) {
                uses.extend(free_values(inner).into_iter().map(|value| (value, index)));
            }
        }
        uses.extend(body.outputs.iter().map(|value| (*value, usize::MAX)));
        uses
    }
}

fn subgraphs(node: &NodeDef) -> impl Iterator<Item = &Arc<GraphBody>> {
    node.attributes.iter().filter_map(|(_, value)| match value {
        Attribute::Graph(body) => Some(body),
        _ => None,
    })
}

/// Values that a body reads and does not define, nested bodies included.
fn free_values(body: &GraphBody) -> HashSet<ValueId> {
    let mut used: HashSet<ValueId> = body.outputs.iter().copied().collect();
    let mut defined: HashSet<ValueId> = body.inputs.iter().copied().collect();
    for node in &body.nodes {
        used.extend(node.inputs.iter().flatten());
        defined.extend(node.outputs.iter().flatten());
        subgraphs(node).for_each(|inner| used.extend(free_values(inner)));
    }
    used.retain(|value| !defined.contains(value));
    used
}
