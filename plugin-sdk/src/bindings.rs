//! What wit-bindgen makes of `wit/v1`: one module per world. The transform
//! world reuses the imports of the model world, so that the rest of the SDK
//! deals with one `Tensor` and one `Graph`.
//!
//! `pub_export_macro` matters: it keeps a world's exports out of every
//! component whose plugin does not call that world's export macro.
//!
//! `predict` and `apply` are skipped because wit-bindgen cannot lift a list of
//! borrowed handles; [`crate::abi`] exports them.
#![allow(missing_docs, unreachable_pub, clippy::all)]

pub mod model {
    wit_bindgen::generate!({
        path: "../wit/v1",
        world: "model",
        pub_export_macro: true,
        skip: ["predict"],
        export_macro_name: "export_model_world",
        default_bindings_module: "mortise_plugin_sdk::__private::model",
    });
}

pub mod transform {
    wit_bindgen::generate!({
        path: "../wit/v1",
        world: "transform",
        pub_export_macro: true,
        skip: ["apply"],
        export_macro_name: "export_transform_world",
        default_bindings_module: "mortise_plugin_sdk::__private::transform",
        with: {
            "mortise:plugin/types@0.1.0": crate::bindings::model::mortise::plugin::types,
            "mortise:plugin/tensor@0.1.0": crate::bindings::model::mortise::plugin::tensor,
            "mortise:plugin/graph@0.1.0": crate::bindings::model::mortise::plugin::graph,
            "mortise:plugin/assets@0.1.0": crate::bindings::model::mortise::plugin::assets,
            "mortise:plugin/log@0.1.0": crate::bindings::model::mortise::plugin::log,
        },
    });
}

pub mod router {
    wit_bindgen::generate!({
        path: "../wit/v1",
        world: "router",
        pub_export_macro: true,
        export_macro_name: "export_router_world",
        default_bindings_module: "mortise_plugin_sdk::__private::router",
        with: {
            "mortise:plugin/types@0.1.0": crate::bindings::model::mortise::plugin::types,
            "mortise:plugin/log@0.1.0": crate::bindings::model::mortise::plugin::log,
        },
    });
}

pub mod strategy {
    wit_bindgen::generate!({
        path: "../wit/v1",
        world: "strategy",
        pub_export_macro: true,
        export_macro_name: "export_strategy_world",
        default_bindings_module: "mortise_plugin_sdk::__private::strategy",
        with: {
            "mortise:plugin/types@0.1.0": crate::bindings::model::mortise::plugin::types,
            "mortise:plugin/log@0.1.0": crate::bindings::model::mortise::plugin::log,
        },
    });
}
