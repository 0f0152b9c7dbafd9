//! What `rpc.discover` says: that it is an OpenRPC document, of every method and no other, and that
//! it is true of what is asked and answered.
#![allow(clippy::unwrap_used)]

mod stand_ins;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jsonrpsee::{
    core::{
        ClientError,
        client::ClientT,
        params::{ArrayParams, ObjectParams},
    },
    http_client::HttpClient,
    rpc_params,
    server::Methods as MethodTable,
    types::ErrorObjectOwned,
};
use jsonschema::{Draft, Registry, Validator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use stand_ins::{
    Setup,
    calls::{Call, calls},
    channel,
};
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, Signature};
use topnet_api::{ChainName, HexBytes, SocketName, WireguardPublicKey};
use topnet_control::{provider::Provider, rpc::MethodTables};

/// JSON-RPC's code for parameters that are missing or wrong.
const INVALID_PARAMS: i32 = -32_602;
/// Methods whose answers are documents that others define.
const FREE: [&str; 2] = ["genesis", "rpc.discover"];

/// A listener's document.
struct Document(Value);

impl Document {
    async fn of(client: &HttpClient) -> Self {
        let answer = client.request("rpc.discover", rpc_params![]).await;
        Self(answer.unwrap())
    }

    fn methods(&self) -> &[Value] {
        self.0["methods"].as_array().unwrap()
    }

    fn names(&self) -> BTreeSet<&str> {
        let names = self.methods().iter();
        names
            .map(|method| method["name"].as_str().unwrap())
            .collect()
    }

    fn method(&self, name: &str) -> &Value {
        let mut methods = self.methods().iter();
        methods.find(|method| method["name"] == name).unwrap()
    }

    /// What a method takes: name, whether it is required, schema.
    fn parameters(&self, method: &str) -> Vec<(&str, bool, &Value)> {
        let parameters = self.method(method)["params"].as_array().unwrap().iter();
        parameters
            .map(|parameter| {
                let name = parameter["name"].as_str().unwrap();
                let required = parameter["required"].as_bool().unwrap();
                (name, required, &parameter["schema"])
            })
            .collect()
    }

    fn validator(&self, schema: &Value) -> Validator {
        let schema = json!({ "allOf": [schema], "components": self.0["components"] });
        let options = jsonschema::options().with_draft(Draft::Draft7);
        options
            .should_validate_formats(true)
            .build(&schema)
            .unwrap()
    }

    /// Holds a value against its schema, and the same value spoilt in every place.
    fn check(&self, what: &str, schema: &Value, value: &Value, is_free: bool) {
        let validator = self.validator(schema);
        if let Err(error) = validator.validate(value) {
            panic!("{what}: {error} at {}: {value}", error.instance_path());
        }
        let wrong = if is_free {
            vec![wrong_kind()]
        } else {
            spoilt(value)
        };
        for wrong in wrong {
            assert!(!validator.is_valid(&wrong), "{what} may be {wrong}");
        }
    }
}

/// Nothing that we send is an empty list in a list.
fn wrong_kind() -> Value {
    json!([[]])
}

/// The value with one thing in it missing or of the wrong kind, in all ways.
fn spoilt(value: &Value) -> Vec<Value> {
    let mut all = vec![wrong_kind()];
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let mut without = fields.clone();
                without.remove(key);
                all.push(without.into());
                all.extend(spoilt(field).into_iter().map(|field| {
                    let mut with = fields.clone();
                    with.insert(key.clone(), field);
                    with.into()
                }));
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                all.extend(spoilt(item).into_iter().map(|item| {
                    let mut with = items.clone();
                    with[index] = item;
                    with.into()
                }));
            }
        }
        _ => {}
    }
    all
}

/// What subscriptions are given.
fn subscriptions(setup: &Setup) -> Vec<Call> {
    let id = setup.world.put(channel(9));
    setup.world.chain().accepted_batches = 1;
    vec![
        ("subscribe_blocks", vec![json!("vpn")]),
        ("subscribe_channel", vec![json!(id)]),
        ("subscribe_batches", vec![json!("vpn"), json!(0)]),
    ]
}

async fn by_position(
    client: &HttpClient,
    method: &str,
    values: &[Value],
) -> Result<Value, ErrorObjectOwned> {
    let mut params = ArrayParams::new();
    for value in values {
        params.insert(value).unwrap();
    }
    answer(client.request(method, params).await)
}

async fn by_name(
    client: &HttpClient,
    method: &str,
    values: &[(&str, &Value)],
) -> Result<Value, ErrorObjectOwned> {
    let mut params = ObjectParams::new();
    for (name, value) in values {
        params.insert(name, value).unwrap();
    }
    answer(client.request(method, params).await)
}

fn answer(answer: Result<Value, ClientError>) -> Result<Value, ErrorObjectOwned> {
    answer.map_err(|error| match error {
        ClientError::Call(error) => error,
        other => panic!("{other}"),
    })
}

/// The methods of both listeners before processes that answer.
async fn tables() -> (Setup, MethodTables) {
    let mut setup = Setup::without_processes();
    for name in [
        SocketName::Settlement,
        SocketName::Dataplane,
        SocketName::Metering,
    ] {
        setup.start_process(name).await;
    }
    let provider = Arc::new(Provider::open(setup.config()).unwrap());
    (setup, MethodTables::of(&provider).unwrap())
}

async fn document_of(table: &MethodTable) -> Document {
    Document(table.call("rpc.discover", rpc_params![]).await.unwrap())
}

#[tokio::test]
async fn each_listener_describes_what_it_answers_and_nothing_else() {
    let (_setup, tables) = tables().await;
    let mut sizes = Vec::new();
    for table in [&tables.public, &tables.operator] {
        let document = document_of(table).await;
        let answered: BTreeSet<&str> = table.method_names().collect();
        assert_eq!(document.names(), answered);
        assert_eq!(document.methods().len(), answered.len());
        for method in document.methods() {
            let summary = method["summary"].as_str().unwrap();
            assert!(summary.ends_with('.'), "{method}");
        }
        sizes.push(answered.len());
    }
    assert!(sizes[0] < sizes[1], "{sizes:?}");

    // The listeners serve the same.
    let setup = Setup::start().await;
    for (client, table) in [
        (setup.public(), &tables.public),
        (setup.operator(), &tables.operator),
    ] {
        let served = Document::of(&client).await;
        assert_eq!(served.0, document_of(table).await.0);
    }
}

#[tokio::test]
async fn the_document_is_openrpc() {
    let (_setup, tables) = tables().await;
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let json_schema = read(include_str!("schemas/json-schema.json"));
    // Its name is written in both ways.
    let registry = Registry::new()
        .add("https://meta.json-schema.tools", &json_schema)
        .and_then(|registry| registry.add("https://meta.json-schema.tools/", &json_schema))
        .and_then(|registry| registry.prepare())
        .unwrap();
    let openrpc = jsonschema::options()
        .with_draft(Draft::Draft7)
        .with_registry(&registry)
        .build(&read(include_str!("schemas/openrpc.json")))
        .unwrap();
    for table in [&tables.public, &tables.operator] {
        let Document(document) = document_of(table).await;
        if let Err(error) = openrpc.validate(&document) {
            panic!("{error} at {}", error.instance_path());
        }
        // A strict validator takes no format that it was not told of.
        assert!(!document.to_string().contains("\"format\""));
        for (place, wrong) in [
            ("/openrpc", json!("1.4.0")),
            ("/info", json!({})),
            ("/methods/1/name", json!(1)),
            ("/methods/3/paramStructure", json!("whatever")),
            ("/methods/3/params/0", json!({ "name": "chain" })),
            (
                "/components/schemas/ChannelView/properties",
                json!("string"),
            ),
            ("/components/errors/Refused/code", json!("-32000")),
        ] {
            let mut spoilt = document.clone();
            *spoilt.pointer_mut(place).unwrap() = wrong;
            assert!(!openrpc.is_valid(&spoilt), "{place}");
        }
    }
}

#[tokio::test]
async fn every_answer_is_what_the_document_says() {
    let setup = Setup::start().await;
    let (client, calls) = (setup.operator(), calls(&setup));
    let document = Document::of(&client).await;
    let public = Document::of(&setup.public()).await;
    let mut called = BTreeSet::new();
    for (method, values) in &calls {
        let parameters = document.parameters(method);
        assert_eq!(parameters.len(), values.len(), "{method}");
        let named = parameters.iter().map(|(name, ..)| *name).zip(values);
        let named: Vec<(&str, &Value)> = named.collect();
        let result = &document.method(method)["result"]["schema"];
        for answer in [
            by_position(&client, method, values).await,
            by_name(&client, method, &named).await,
        ] {
            let answer = answer.unwrap();
            assert_ne!(answer, json!([]), "{method} shows nothing");
            document.check(method, result, &answer, FREE.contains(method));
        }
        if public.names().contains(method) && *method != "rpc.discover" {
            assert_eq!(document.method(method), public.method(method));
            let answer = by_position(&setup.public(), method, values).await.unwrap();
            public.check(method, result, &answer, FREE.contains(method));
        }
        called.insert(*method);
    }
    let begun_and_ended = document.methods().iter().flat_map(|method| {
        let ends = method["x-subscription"]["unsubscribe"].as_str()?;
        Some([method["name"].as_str()?, ends])
    });
    called.extend(begun_and_ended.flatten());
    assert_eq!(called, document.names(), "methods without a call here");
}

#[tokio::test]
async fn parameters_are_taken_as_the_document_says_and_not_otherwise() {
    let setup = Setup::start().await;
    let (client, calls) = (setup.operator(), calls(&setup));
    let document = Document::of(&client).await;
    let mut left_out = BTreeSet::new();
    for (method, values) in &calls {
        let parameters = document.parameters(method);
        let named: Vec<(&str, &Value)> = parameters
            .iter()
            .map(|(name, ..)| *name)
            .zip(values)
            .collect();
        for (index, (name, required, schema)) in parameters.iter().enumerate() {
            let what = format!("{method} {name}");
            document.check(&what, schema, &values[index], false);

            let mut without = named.clone();
            without.remove(index);
            let answers = [
                by_name(&client, method, &without).await,
                by_position(&client, method, &values[..index]).await,
            ];
            for answer in answers {
                let code = answer.map_err(|error| error.code());
                match required {
                    true => assert_eq!(code, Err(INVALID_PARAMS), "{what}"),
                    false => assert!(code.is_ok(), "{what}: {code:?}"),
                }
            }
            left_out.insert(*required);

            for wrong in spoilt(&values[index]) {
                let mut with = named.clone();
                with[index].1 = &wrong;
                let code = by_name(&client, method, &with).await;
                let code = code.map_err(|error| error.code());
                assert_eq!(code, Err(INVALID_PARAMS), "{what} may be {wrong}");
            }
        }
    }
    assert_eq!(left_out, BTreeSet::from([false, true]));
}

#[tokio::test]
async fn refusals_are_what_the_document_says() {
    let setup = Setup::start().await;
    let client = setup.operator();
    let document = Document::of(&client).await;
    let refused = by_position(&client, "channel", &[json!(ChannelId([1; 32]))]).await;
    let error = refused.unwrap_err();
    let reference = document.method("channel")["errors"][0]["$ref"].as_str();
    let described = document.0.pointer(&reference.unwrap()[1..]).unwrap();
    assert_eq!(described["code"], error.code());
    let data: Value = serde_json::from_str(error.data().unwrap().get()).unwrap();
    document.check("data", &described["data"], &data, false);
}

/// One notification of each subscription, as it is on the wire.
#[tokio::test]
async fn subscriptions_are_what_the_document_says() {
    let (setup, tables) = tables().await;
    let document = document_of(&tables.operator).await;
    let ask = async |method: &str, params: Value| {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let request = request.to_string();
        let asked = tables.operator.raw_json_request(&request, 8).await;
        let (answer, notifications) = asked.unwrap();
        let answer: Value = serde_json::from_str(answer.get()).unwrap();
        (answer["result"].clone(), notifications)
    };
    let subscriptions = subscriptions(&setup);
    let described = document.methods().iter();
    let described = described.filter(|method| method.get("x-subscription").is_some());
    assert_eq!(described.count(), subscriptions.len());
    for (method, values) in subscriptions {
        let described = document.method(method);
        let subscription = &described["x-subscription"];
        let names = document.parameters(method);
        let names = names.iter().map(|(name, ..)| (*name).to_owned());
        let named: serde_json::Map<String, Value> = names.zip(values).collect();
        let (id, mut notifications) = ask(method, json!(named)).await;
        document.check(method, &described["result"]["schema"], &id, false);

        let notification = tokio::time::timeout(Duration::from_secs(20), notifications.recv());
        let notification = notification.await.unwrap().unwrap();
        let notification: Value = serde_json::from_str(notification.get()).unwrap();
        assert_eq!(notification["method"], subscription["notification"]);
        assert_eq!(notification["params"]["subscription"], id);
        let item = &notification["params"]["result"];
        document.check(method, &subscription["item"], item, false);

        let unsubscribe = subscription["unsubscribe"].as_str().unwrap();
        let described = document.method(unsubscribe);
        assert_eq!(described["paramStructure"], "by-position");
        let [(name, true, schema)] = document.parameters(unsubscribe)[..] else {
            panic!("{described}");
        };
        document.check(unsubscribe, schema, &id, false);
        let (ended, _) = ask(unsubscribe, json!({ name: id })).await;
        assert_eq!(ended, false, "{unsubscribe} reads names");
        let (ended, _) = ask(unsubscribe, json!([id])).await;
        assert_eq!(ended, true);
        document.check(unsubscribe, &described["result"]["schema"], &ended, false);
    }
}

/// What is written by hand for people: the schema takes what is written, and refuses what is not read.
#[tokio::test]
async fn text_forms_are_those_that_are_read() {
    fn check<T: Serialize + DeserializeOwned>(
        document: &Document,
        name: &str,
        good: impl IntoIterator<Item = T>,
        bad: &[&str],
    ) {
        let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
        let validator = document.validator(&schema);
        for value in good {
            let value = json!(value);
            assert!(validator.is_valid(&value), "{name} {value}");
        }
        for text in bad {
            let value = json!(text);
            assert!(!validator.is_valid(&value), "{name} {text}");
            assert!(serde_json::from_value::<T>(value).is_err(), "{name} {text}");
        }
        assert!(!validator.is_valid(&json!(1)), "{name}");
        let described = &document.0["components"]["schemas"][name];
        for example in described["examples"].as_array().unwrap() {
            assert!(validator.is_valid(example), "{name} {example}");
            serde_json::from_value::<T>(example.clone()).unwrap();
        }
    }
    let setup = Setup::start().await;
    let document = Document::of(&setup.operator()).await;
    let document = &document;
    let bytes = || (0..=u8::MAX).map(|byte| [byte; 32]);
    let digits = "0".repeat(66);
    let (bare, long) = (&digits[2..], format!("0x{digits}"));
    let other = format!("0x{}", "g".repeat(64));
    let hex: &[&str] = &["", "0x", "0x00", bare, &long, &other];
    check(
        document,
        "Amount",
        [0, 1, 1_500, u64::MAX].map(Amount::from_ntop),
        &["", "-1", "1.5", "1e3", "123456789012345678901"],
    );
    let address = Address([7; 32]).to_string();
    check(
        document,
        "Address",
        bytes().map(Address),
        &[
            "",
            "top1",
            &address[1..],
            &address[..61],
            &address.replace('1', "b"),
        ],
    );
    check(document, "Hash", bytes().map(Hash), hex);
    check(document, "ChannelId", bytes().map(ChannelId), hex);
    check(document, "PublicKey", bytes().map(PublicKey), hex);
    check(document, "Signature", [Signature([0xfe; 64])], hex);
    check(
        document,
        "WireguardPublicKey",
        bytes().map(WireguardPublicKey),
        &[
            "",
            &"A".repeat(43),
            &"A".repeat(44),
            &format!("{}B=", "A".repeat(42)),
        ],
    );
    check(
        document,
        "HexBytes",
        [vec![], vec![0, 0xab]].map(HexBytes),
        &["", "00", "0x0", "0x0g"],
    );
    check(document, "ChainName", [ChainName::main()], &[]);
}
