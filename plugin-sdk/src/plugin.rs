use crate::bindings::model::exports::mortise::plugin::model_api;
use crate::bindings::transform::exports::mortise::plugin::transform_api;
use crate::{Context, Error, Graph, Result, Signature, Tensor};
use crate::{bindings::model::mortise::plugin::types as raw, log};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

/// A model: how the requests of an endpoint are answered.
pub trait Model: Sized + 'static {
    /// Called once per instance, before any request.
    ///
    /// # Errors
    /// The message reaches whoever deploys.
    fn load(ctx: &Context) -> Result<Loaded<Self>>;

    /// Answers one batch; only called when `load` returned
    /// [`Loaded::Custom`]. Inputs and outputs are in the signature's order.
    ///
    /// # Errors
    /// The message reaches the client.
    fn predict(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let _ = inputs;
        Err(Error::failed("this model returned Loaded::Custom but does not implement predict"))
    }
}

/// A transform: turns the tensors of a request into those of the next
/// transform or the model, matched by name.
pub trait Transform: Sized + 'static {
    /// As [`Model::load`].
    ///
    /// # Errors
    /// The message reaches whoever deploys.
    fn load(ctx: &Context) -> Result<Loaded<Self>>;

    /// As [`Model::predict`].
    ///
    /// # Errors
    /// The message reaches the client.
    fn apply(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let _ = inputs;
        Err(Error::failed("this transform returned Loaded::Custom but does not implement apply"))
    }
}

/// What `load` returns.
#[derive(Debug)]
pub enum Loaded<P> {
    /// The host runs the graph and does not enter the plugin per request.
    Direct(Graph),
    /// The plugin is called once per batch.
    Custom { signature: Signature, plugin: P },
}

/// A loaded plugin of either world, as the export shims call it.
trait Run {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;
}

thread_local! {
    /// An instance serves one plugin, and runs on one thread at a time.
    static LOADED: RefCell<Option<Rc<dyn Run>>> = const { RefCell::new(None) };
}

/// Runs whatever `load` put into place.
pub(crate) fn run_loaded(inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let plugin = LOADED.with_borrow(Clone::clone);
    match plugin {
        Some(plugin) => plugin.run(inputs),
        None => Err(Error::failed("the plugin is not loaded, or runs as a graph")),
    }
}

fn keep(plugin: impl Run + 'static) {
    LOADED.set(Some(Rc::new(plugin)));
}

/// The model world's exports for `M`.
#[doc(hidden)]
pub struct ModelExport<M>(PhantomData<M>);

struct RunModel<M>(M);

impl<M: Model> Run for RunModel<M> {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.0.predict(inputs)
    }
}

impl<M: Model> model_api::Guest for ModelExport<M> {
    fn load(config: String) -> Result<model_api::Plan, raw::Error> {
        log::install_panic_hook();
        Ok(match M::load(&Context::new(config))? {
            Loaded::Direct(graph) => model_api::Plan::Direct(graph.into_raw()),
            Loaded::Custom { signature, plugin } => {
                keep(RunModel(plugin));
                model_api::Plan::Custom(signature.into())
            }
        })
    }
}

/// The transform world's exports for `T`.
#[doc(hidden)]
pub struct TransformExport<T>(PhantomData<T>);

struct RunTransform<T>(T);

impl<T: Transform> Run for RunTransform<T> {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.0.apply(inputs)
    }
}

impl<T: Transform> transform_api::Guest for TransformExport<T> {
    fn load(config: String) -> Result<transform_api::Plan, raw::Error> {
        log::install_panic_hook();
        Ok(match T::load(&Context::new(config))? {
            Loaded::Direct(graph) => transform_api::Plan::Direct(graph.into_raw()),
            Loaded::Custom { signature, plugin } => {
                keep(RunTransform(plugin));
                transform_api::Plan::Custom(signature.into())
            }
        })
    }
}

/// Exports a type that implements [`Model`] as the component's model. Call it
/// once, at the top level of the plugin's crate.
#[macro_export]
macro_rules! export_model {
    ($model:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type MortiseExport = $crate::__private::ModelExport<$model>;
            $crate::__private::model::export_model_world!(
                MortiseExport with_types_in $crate::__private::model
            );
            $crate::__export_run!("mortise:plugin/model-api@0.1.0#predict");
        };
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Context) -> $crate::Result<$crate::Loaded<$model>> =
            <$model as $crate::Model>::load;
    };
}

/// Exports a type that implements [`Transform`] as the component's transform.
/// Call it once, at the top level of the plugin's crate.
#[macro_export]
macro_rules! export_transform {
    ($transform:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type MortiseExport = $crate::__private::TransformExport<$transform>;
            $crate::__private::transform::export_transform_world!(
                MortiseExport with_types_in $crate::__private::transform
            );
            $crate::__export_run!("mortise:plugin/transform-api@0.1.0#apply");
        };
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Context) -> $crate::Result<$crate::Loaded<$transform>> =
            <$transform as $crate::Transform>::load;
    };
}
