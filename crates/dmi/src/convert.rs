//! Device and DeviceModel objects (`devices.kubeedge.io/v1beta1`) as the messages that mappers get.
//!
//! What a device does not say about its protocol and about where its properties are found, its model says: keys of the device win, one by
//! one (KubeEdge v1.23). Node name and metadata do not go to mappers, nor does what the object says of its status.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::v1beta1 as proto;
use crate::value::{NoPlace, customized};

/// A Device object, as far as mappers hear of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its name.
    pub metadata: Metadata,
    #[serde(deserialize_with = "null")]
    spec: DeviceSpec,
    #[serde(deserialize_with = "null")]
    status: StateReport,
}

/// A DeviceModel object, as far as mappers hear of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DeviceModel {
    /// Its name.
    pub metadata: Metadata,
    #[serde(deserialize_with = "null")]
    spec: ModelSpec,
}

/// The name of an object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// The name in the namespace.
    pub name: String,
    /// The namespace.
    pub namespace: String,
    /// What tells it from others of this name.
    pub uid: String,
}

/// Why a device cannot be described to a mapper.
#[derive(Debug, thiserror::Error)]
#[error("{at}")]
pub struct NotConverted {
    /// The field that cannot be carried over.
    pub at: String,
    /// What is wrong with it.
    #[source]
    pub why: NoPlace,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceSpec {
    #[serde(deserialize_with = "null")]
    device_model_ref: Reference,
    #[serde(deserialize_with = "null")]
    protocol: Protocol,
    #[serde(deserialize_with = "null")]
    properties: Vec<Property>,
    #[serde(deserialize_with = "null")]
    methods: Vec<Method>,
    state_report: Option<StateReport>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Protocol {
    protocol_name: String,
    #[serde(deserialize_with = "null")]
    config_data: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Property {
    name: String,
    #[serde(deserialize_with = "null")]
    desired: Desired,
    #[serde(deserialize_with = "null")]
    visitors: Protocol,
    report_cycle: i64,
    collect_cycle: i64,
    report_to_cloud: bool,
    push_method: Option<PushMethod>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Desired {
    value: String,
    #[serde(deserialize_with = "null")]
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Method {
    name: String,
    description: String,
    #[serde(deserialize_with = "null")]
    property_names: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StateReport {
    report_to_cloud: bool,
    report_cycle: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PushMethod {
    http: Option<Http>,
    mqtt: Option<Mqtt>,
    otel: Option<Otel>,
    db_method: Option<Databases>,
    anomaly_detection: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Http {
    host_name: String,
    port: i64,
    request_path: String,
    timeout: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Mqtt {
    address: String,
    topic: String,
    qos: i32,
    retained: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Otel {
    #[serde(rename = "endpointURL")]
    endpoint_url: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Databases {
    influxdb2: Option<Influx>,
    redis: Option<Redis>,
    #[serde(rename = "TDEngine")]
    tdengine: Option<TdEngine>,
    mysql: Option<MySql>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Influx {
    #[serde(rename = "influxdb2ClientConfig")]
    client: Option<InfluxClient>,
    #[serde(rename = "influxdb2DataConfig")]
    data: Option<InfluxData>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct InfluxClient {
    url: String,
    org: String,
    bucket: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct InfluxData {
    measurement: String,
    #[serde(deserialize_with = "null")]
    tag: BTreeMap<String, String>,
    field_key: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Redis {
    #[serde(rename = "redisClientConfig")]
    client: Option<RedisClient>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RedisClient {
    addr: String,
    db: i32,
    poolsize: i32,
    min_idle_conns: i32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TdEngine {
    #[serde(rename = "TDEngineClientConfig")]
    client: Option<TdEngineClient>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TdEngineClient {
    addr: String,
    db_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct MySql {
    #[serde(rename = "mysqlClientConfig")]
    client: Option<MySqlClient>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MySqlClient {
    addr: String,
    database: String,
    user_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelSpec {
    #[serde(deserialize_with = "null")]
    protocol_config_data: Map<String, Value>,
    #[serde(deserialize_with = "null")]
    properties: Vec<ModelProperty>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelProperty {
    name: String,
    description: String,
    #[serde(rename = "type")]
    kind: String,
    access_mode: String,
    minimum: String,
    maximum: String,
    unit: String,
    visitors: Option<Protocol>,
}

/// Objects of Go programs have `null` where nothing is said.
fn null<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Device {
    /// `spec.protocol.protocolName`: which mapper drives it.
    pub fn protocol(&self) -> &str {
        &self.spec.protocol.protocol_name
    }

    /// `spec.deviceModelRef.name`, in the namespace of the device.
    pub fn model(&self) -> &str {
        &self.spec.device_model_ref.name
    }

    /// The device as its mapper has to drive it.
    ///
    /// # Errors
    /// Its configuration has something that mappers cannot be told.
    pub fn message(self, model: &DeviceModel) -> Result<proto::Device, NotConverted> {
        let state = self.spec.state_report.unwrap_or(self.status);
        let mut config = model.spec.protocol_config_data.clone();
        config.extend(self.spec.protocol.config_data);
        let config_data = Some(carried(&config, || "spec.protocol.configData".to_owned())?);
        let properties = self.spec.properties.into_iter().map(|property| property.message(model));
        let spec = proto::DeviceSpec {
            device_model_reference: self.spec.device_model_ref.name,
            protocol: Some(proto::ProtocolConfig { protocol_name: self.spec.protocol.protocol_name, config_data }),
            properties: properties.collect::<Result<_, _>>()?,
            methods: self.spec.methods.into_iter().map(Method::message).collect(),
        };
        let status = proto::DeviceStatus {
            twins: Vec::new(),
            report_to_cloud: state.report_to_cloud,
            report_cycle: state.report_cycle,
        };
        let Metadata { name, namespace, .. } = self.metadata;
        Ok(proto::Device { name, spec: Some(spec), status: Some(status), namespace })
    }
}

impl DeviceModel {
    /// The model as mappers get it.
    pub fn message(self) -> proto::DeviceModel {
        let properties = self.spec.properties.into_iter().map(|property| proto::ModelProperty {
            name: property.name,
            description: property.description,
            r#type: property.kind,
            access_mode: property.access_mode,
            minimum: property.minimum,
            maximum: property.maximum,
            unit: property.unit,
        });
        let spec = proto::DeviceModelSpec { properties: properties.collect(), commands: Vec::new() };
        proto::DeviceModel { name: self.metadata.name, spec: Some(spec), namespace: self.metadata.namespace }
    }
}

impl Property {
    fn message(self, model: &DeviceModel) -> Result<proto::DeviceProperty, NotConverted> {
        let of_model = model.spec.properties.iter().find(|property| property.name == self.name);
        let visitors = match of_model.and_then(|property| property.visitors.clone()) {
            Some(mut visitors) => {
                visitors.config_data.extend(self.visitors.config_data);
                visitors
            }
            None => self.visitors,
        };
        let name = self.name;
        let config_data = Some(carried(&visitors.config_data, || format!("the visitors of property {name:?}"))?);
        let push_method = self.push_method.map(|push| push.message(&name)).transpose()?;
        Ok(proto::DeviceProperty {
            desired: Some(proto::TwinProperty { value: self.desired.value, metadata: self.desired.metadata }),
            visitors: Some(proto::VisitorConfig { protocol_name: visitors.protocol_name, config_data }),
            report_cycle: self.report_cycle,
            collect_cycle: self.collect_cycle,
            report_to_cloud: self.report_to_cloud,
            push_method,
            name,
        })
    }
}

impl Method {
    fn message(self) -> proto::DeviceMethod {
        proto::DeviceMethod { name: self.name, description: self.description, property_names: self.property_names }
    }
}

impl PushMethod {
    fn message(self, property: &str) -> Result<proto::PushMethod, NotConverted> {
        let anomalies = self.anomaly_detection.map(|data| {
            let data = carried(&data, || format!("pushMethod.anomalyDetection of property {property:?}"))?.data;
            Ok(proto::AnomalyDetection { data })
        });
        Ok(proto::PushMethod {
            http: self.http.map(|http| proto::PushMethodHttp {
                hostname: http.host_name,
                port: http.port,
                requestpath: http.request_path,
                timeout: http.timeout,
            }),
            mqtt: self.mqtt.map(|mqtt| proto::PushMethodMqtt {
                address: mqtt.address,
                topic: mqtt.topic,
                qos: mqtt.qos,
                retained: mqtt.retained,
            }),
            otel: self.otel.map(|otel| proto::PushMethodOtel { endpoint_url: otel.endpoint_url }),
            db_method: self.db_method.map(Databases::message),
            anomaly_detection: anomalies.transpose()?,
        })
    }
}

impl Databases {
    fn message(self) -> proto::DbMethod {
        proto::DbMethod {
            influxdb2: self.influxdb2.map(Influx::message),
            redis: self.redis.map(|redis| proto::DbMethodRedis {
                redis_client_config: redis.client.map(|client| proto::RedisClientConfig {
                    addr: client.addr,
                    db: client.db,
                    poolsize: client.poolsize,
                    min_idle_conns: client.min_idle_conns,
                }),
            }),
            tdengine: self.tdengine.map(|tdengine| proto::DbMethodTdEngine {
                td_engine_client_config: tdengine
                    .client
                    .map(|client| proto::TdEngineClientConfig { addr: client.addr, dbname: client.db_name }),
            }),
            mysql: self.mysql.map(|mysql| proto::DbMethodMySql {
                mysql_client_config: mysql.client.map(|client| proto::MySqlClientConfig {
                    addr: client.addr,
                    database: client.database,
                    user_name: client.user_name,
                }),
            }),
        }
    }
}

impl Influx {
    fn message(self) -> proto::DbMethodInfluxdb2 {
        proto::DbMethodInfluxdb2 {
            influxdb2_client_config: self.client.map(|client| proto::Influxdb2ClientConfig {
                url: client.url,
                org: client.org,
                bucket: client.bucket,
            }),
            influxdb2_data_config: self.data.map(|data| proto::Influxdb2DataConfig {
                measurement: data.measurement,
                tag: data.tag,
                field_key: data.field_key,
            }),
        }
    }
}

fn carried(data: &Map<String, Value>, at: impl FnOnce() -> String) -> Result<proto::CustomizedValue, NotConverted> {
    customized(data).map_err(|why| NotConverted { at: at(), why })
}
