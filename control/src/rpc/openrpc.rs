//! The RPC as it describes itself: each listener answers `rpc.discover` with an OpenRPC 1.3.2
//! document of the methods that it has (<https://spec.open-rpc.org>).
//!
//! [`described`] reads the very trait that jsonrpsee makes a server and a client of, so that names,
//! parameters and words are written once; schemas (draft 7, as OpenRPC has them) come from the
//! types. They say what is sent: a field that may be missing is there, as null.
//!
//! OpenRPC knows no subscriptions. One is described as the two methods that begin and end it, with
//! `x-subscription` beside the first: where it works, what a notification is called, and what its
//! `params.result` is.

use jsonrpsee::{
    RpcModule,
    core::RegisterMethodError,
    types::{ErrorObjectOwned, error::INTERNAL_ERROR_CODE},
};
use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema,
    transform::RecursiveTransform,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json, value::to_raw_value};
use topnet_api::ApiError;

use super::REFUSED;

/// The version of OpenRPC.
const OPENRPC: &str = "1.3.2";
/// The method that OpenRPC reserves for the document.
const DISCOVER: &str = "rpc.discover";
/// Where schemas are in the document.
const SCHEMAS: &str = "/components/schemas";
/// Where the document says how methods refuse.
const REFUSAL: &str = "#/components/errors/Refused";

/// An IPv4 address as text.
const IPV4: &str = "^([0-9]{1,3}\\.){3}[0-9]{1,3}$";

/// Declares a trait of methods as it stands, and a function that describes them.
macro_rules! described {
    (fn $describe:ident; $($declaration:tt)*) => {
        $($declaration)*

        fn $describe(description: &mut $crate::rpc::openrpc::Description) {
            described!(@trait description: $($declaration)*);
        }
    };
    (@trait $description:ident:
        $(#[doc = $about:literal])*
        #[rpc(server, client)]
        pub trait $name:ident { $($methods:tt)* }
    ) => {
        described!(@methods $description: $($methods)*);
    };
    (@methods $description:ident: $(
        $(#[doc = $doc:literal])*
        $(#[method(name = $method:literal)])?
        $(#[subscription(
            name = $subscribe:literal => $notification:literal,
            unsubscribe = $unsubscribe:literal,
            item = $item:ty
        )])?
        async fn $rust_name:ident(&self $(, $parameter:ident: $type:ty)* $(,)?)
            -> $(Result<$answer:ty, ErrorObjectOwned>)? $(SubscriptionResult)?;
    )*) => {$({
        let words = [$($doc),*];
        let parameters = vec![$($description.parameter::<$type>(stringify!($parameter))),*];
        $($description.method::<$answer>($method, &words, parameters);)?
        $($description.subscription::<$item>(
            $crate::rpc::openrpc::SubscriptionNames {
                subscribe: $subscribe,
                notification: $notification,
                unsubscribe: $unsubscribe,
            },
            &words,
            parameters,
        );)?
    })*};
}
pub(super) use described;

/// A document in the making.
#[derive(Debug)]
pub(super) struct Description {
    title: &'static str,
    schemas: SchemaGenerator,
    methods: Vec<Method>,
}

/// What a subscription is called at its beginning, at its end and in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct SubscriptionNames {
    pub(super) subscribe: &'static str,
    pub(super) notification: &'static str,
    pub(super) unsubscribe: &'static str,
}

/// OpenRPC's method object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Method {
    name: &'static str,
    summary: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    param_structure: ParamStructure,
    params: Vec<Content>,
    result: Content,
    errors: Vec<Value>,
    #[serde(rename = "x-subscription", skip_serializing_if = "Option::is_none")]
    subscription: Option<Subscription>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ParamStructure {
    Either,
    /// The end of a subscription is jsonrpsee's own method, and reads an array only.
    ByPosition,
}

/// OpenRPC's content descriptor: a parameter, or a result.
#[derive(Debug, Serialize)]
pub(super) struct Content {
    name: &'static str,
    required: bool,
    schema: Schema,
}

/// The extension `x-subscription`.
#[derive(Debug, Serialize)]
struct Subscription {
    transport: &'static str,
    notification: &'static str,
    item: Schema,
    unsubscribe: &'static str,
}

/// Names a subscription within its connection.
#[derive(JsonSchema)]
struct SubscriptionId(
    // As much as a JavaScript number holds.
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    #[expect(dead_code, reason = "only its schema is used")]
    u64,
);

impl Description {
    /// Nothing yet.
    pub(super) fn new(title: &'static str) -> Self {
        let settings = SchemaSettings::draft07()
            .for_serialize()
            .with(|settings| settings.definitions_path = SCHEMAS.into())
            .with_transform(RecursiveTransform(spell_out_format));
        Self {
            title,
            schemas: settings.into_generator(),
            methods: Vec::new(),
        }
    }

    /// A parameter. It may be left out if it may be null, as jsonrpsee reads them.
    pub(super) fn parameter<T: JsonSchema + DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Content {
        Content {
            name,
            required: serde_json::from_value::<T>(Value::Null).is_err(),
            schema: self.schema::<T>(),
        }
    }

    /// Adds a method that answers with a `T` or refuses.
    pub(super) fn method<T: JsonSchema>(
        &mut self,
        name: &'static str,
        words: &[&str],
        params: Vec<Content>,
    ) {
        let result = self.result::<T>();
        self.methods.push(Method {
            params,
            errors: vec![json!({ "$ref": REFUSAL })],
            ..Method::infallible(name, words, result)
        });
    }

    /// Adds the two methods of a subscription to `T`s.
    pub(super) fn subscription<T: JsonSchema>(
        &mut self,
        names: SubscriptionNames,
        words: &[&str],
        params: Vec<Content>,
    ) {
        let SubscriptionNames {
            subscribe,
            notification,
            unsubscribe,
        } = names;
        let item = self.schema::<T>();
        self.method::<SubscriptionId>(subscribe, words, params);
        if let Some(method) = self.methods.last_mut() {
            method.subscription = Some(Subscription {
                transport: "WebSocket",
                notification,
                item,
                unsubscribe,
            });
        }
        let ends =
            format!("Ends what `{subscribe}` began. False if there is no such subscription.");
        let subscription = Content {
            name: "subscription",
            required: true,
            schema: self.schema::<SubscriptionId>(),
        };
        let result = self.result::<bool>();
        self.methods.push(Method {
            param_structure: ParamStructure::ByPosition,
            params: vec![subscription],
            ..Method::infallible(unsubscribe, &[&ends], result)
        });
    }

    /// Has `module` answer with the document of what has been described, and of that method.
    pub(super) fn serve<C: Send + Sync + 'static>(
        mut self,
        module: &mut RpcModule<C>,
    ) -> Result<(), RegisterMethodError> {
        let document = Content {
            name: "result",
            required: true,
            schema: json_schema!({
                "type": "object",
                "description": "An OpenRPC document.",
                "required": ["openrpc", "info", "methods"],
            }),
        };
        let discover = Method::infallible(DISCOVER, &["This document."], document);
        self.methods.push(discover);
        // Written once: anybody may ask for it at any time.
        let document = to_raw_value(&self.document()).map_err(|error| {
            ErrorObjectOwned::owned(INTERNAL_ERROR_CODE, error.to_string(), None::<()>)
        });
        module.register_method(DISCOVER, move |_, _, _| document.clone())?;
        Ok(())
    }

    fn document(mut self) -> Value {
        let refused = json!({
            "code": REFUSED,
            "message": "What was wrong, and the mend.",
            "data": self.schema::<ApiError>(),
        });
        json!({
            "openrpc": OPENRPC,
            "info": {
                "title": self.title,
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": env!("CARGO_PKG_LICENSE") },
            },
            "methods": self.methods,
            "components": {
                "schemas": self.schemas.take_definitions(true),
                "errors": { "Refused": refused },
            },
        })
    }

    fn result<T: JsonSchema>(&mut self) -> Content {
        Content {
            name: "result",
            required: true,
            schema: self.schema::<T>(),
        }
    }

    /// A reference, or what has no name of its own.
    fn schema<T: JsonSchema>(&mut self) -> Schema {
        let mut schema = self.schemas.subschema_for::<T>();
        for transform in self.schemas.transforms_mut() {
            transform.transform(&mut schema);
        }
        schema
    }
}

impl Method {
    /// A method without parameters that does not refuse; its first sentence is the summary.
    fn infallible(name: &'static str, words: &[&str], result: Content) -> Self {
        let lines: Vec<&str> = words.iter().map(|line| line.trim()).collect();
        let text = lines.join(" ");
        let (summary, description) = match text.split_once(". ") {
            Some((first, rest)) => (format!("{first}."), Some(rest.to_owned())),
            None => (text, None),
        };
        Self {
            name,
            summary,
            description,
            param_structure: ParamStructure::Either,
            params: Vec::new(),
            result,
            errors: Vec::new(),
            subscription: None,
        }
    }
}

/// Says with a bound or a pattern what a format says: JSON Schema has no `uint64`, and strict
/// validators refuse every format that they were not told of, `ipv4` too.
fn spell_out_format(schema: &mut Schema) {
    let Some(Value::String(format)) = schema.remove("format") else {
        return;
    };
    let bits = format.strip_prefix("uint").map(str::parse::<u32>);
    if let Some(Ok(bits @ 1..=64)) = bits {
        schema.insert("maximum".to_owned(), (u64::MAX >> (64 - bits)).into());
    } else if format == "ipv4" {
        schema.insert("pattern".to_owned(), IPV4.into());
    }
}
