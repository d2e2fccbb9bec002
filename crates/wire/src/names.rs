//! The words that routes are made of (KubeEdge v1.23).

/// Modules of both programs: where messages are sent to within a process.
pub mod module {
    /// EdgeHub on the edge.
    pub const EDGE_HUB: &str = "websocket";
    /// MetaManager on the edge.
    pub const META_MANAGER: &str = "metamanager";
    /// The node agent.
    pub const EDGED: &str = "edged";
    /// DeviceTwin on the edge.
    pub const TWIN: &str = "twin";
    /// EventBus on the edge.
    pub const EVENT_BUS: &str = "eventbus";
    /// ServiceBus on the edge.
    pub const SERVICE_BUS: &str = "servicebus";
    /// EdgeStream on the edge.
    pub const EDGE_STREAM: &str = "edgestream";
    /// Node tasks, on both sides.
    pub const TASK_MANAGER: &str = "taskmanager";
    /// CloudHub.
    pub const CLOUD_HUB: &str = "cloudhub";
    /// EdgeController.
    pub const EDGE_CONTROLLER: &str = "edgecontroller";
}

/// Values of `route.source` that decide how a message is treated.
pub mod source {
    /// EdgeHub's own messages (keepalive).
    pub const EDGE_HUB: &str = "websocket";
    /// In-process news of the connection.
    pub const EDGE_HUB_EVENTS: &str = "edgehub";
    /// The node agent.
    pub const EDGED: &str = "edged";
    /// MetaManager.
    pub const META_MANAGER: &str = "metamanager";
    /// MetaServer.
    pub const META_SERVER: &str = "metaserver";
    /// DeviceTwin.
    pub const TWIN: &str = "twin";
    /// EventBus.
    pub const EVENT_BUS: &str = "bus";
    /// CloudHub.
    pub const CLOUD_HUB: &str = "cloudhub";
    /// EdgeController, and SyncController in its name.
    pub const EDGE_CONTROLLER: &str = "edgecontroller";
    /// DeviceController.
    pub const DEVICE_CONTROLLER: &str = "devicecontroller";
    /// DynamicController.
    pub const DYNAMIC_CONTROLLER: &str = "dynamiccontroller";
    /// PolicyController.
    pub const POLICY_CONTROLLER: &str = "policycontroller";
    /// SyncController.
    pub const SYNC_CONTROLLER: &str = "synccontroller";
    /// CloudStream.
    pub const CLOUD_STREAM: &str = "cloudStream";
    /// Node tasks.
    pub const TASK_MANAGER: &str = "taskmanager";
    /// Node jobs towards edges before v1.16.
    pub const NODE_UPGRADE_JOB: &str = "nodeupgradejobcontroller";
    /// Rules towards MQTT.
    pub const ROUTER_EVENT_BUS: &str = "router_eventbus";
    /// Rules towards HTTP services.
    pub const ROUTER_SERVICE_BUS: &str = "router_servicebus";
}

/// Values of `route.group`.
pub mod group {
    /// Kubernetes objects, both directions.
    pub const RESOURCE: &str = "resource";
    /// A synonym of [`RESOURCE`] that an edge accepts.
    pub const FUNC: &str = "func";
    /// Requests of edged and MetaServer; also MetaManager's module group.
    pub const META: &str = "meta";
    /// Device messages; also DeviceTwin's module group.
    pub const TWIN: &str = "twin";
    /// MQTT and HTTP data of rules.
    pub const USER: &str = "user";
    /// EdgeHub's module group.
    pub const HUB: &str = "hub";
    /// EventBus's and ServiceBus's module group.
    pub const BUS: &str = "bus";
    /// The node agent's module group.
    pub const EDGED: &str = "edged";
    /// Node tasks.
    pub const TASK_MANAGER: &str = "taskmanager";
}

/// Values of `route.operation`.
pub mod operation {
    /// An object came into being.
    pub const INSERT: &str = "insert";
    /// An object changed, or came into being.
    pub const UPDATE: &str = "update";
    /// An object is gone.
    pub const DELETE: &str = "delete";
    /// A partial change, from the edge.
    pub const PATCH: &str = "patch";
    /// A request for an object.
    pub const QUERY: &str = "query";
    /// An answer, or an acknowledgement.
    pub const RESPONSE: &str = "response";
    /// A failure.
    pub const ERROR: &str = "error";
    /// MQTT or HTTP data for the cloud.
    pub const UPLOAD: &str = "upload";
    /// The edge's heartbeat; it is never answered.
    pub const KEEPALIVE: &str = "keepalive";
    /// `membership/detail` only.
    pub const GET: &str = "get";
    /// In-process: the connection's state changed.
    pub const CONNECT: &str = "connect";
    /// The answer to a MetaServer request.
    pub const APPLICATION_RESPONSE: &str = "applicationResponse";
    /// A node task.
    pub const UPGRADE: &str = "upgrade";
    /// A node task.
    pub const PREPULL: &str = "prepull";
    /// A node job's report.
    pub const UPDATE_NODE_ACTION_STATUS: &str = "UpdateNodeActionStatus";
    /// CSI requests.
    pub const VOLUME: [&str; 4] =
        ["createvolume", "deletevolume", "controllerpublishvolume", "controllerunpublishvolume"];
}

/// Resource types: the middle part of a resource path.
pub mod kind {
    /// A Pod.
    pub const POD: &str = "pod";
    /// A strategic-merge patch of a pod's status.
    pub const POD_PATCH: &str = "podpatch";
    /// A pod's status, deprecated form.
    pub const POD_STATUS: &str = "podstatus";
    /// A Node.
    pub const NODE: &str = "node";
    /// A strategic-merge patch of a node's status.
    pub const NODE_PATCH: &str = "nodepatch";
    /// A node's status, deprecated form.
    pub const NODE_STATUS: &str = "nodestatus";
    /// A ConfigMap.
    pub const CONFIG_MAP: &str = "configmap";
    /// A Secret.
    pub const SECRET: &str = "secret";
    /// A Service.
    pub const SERVICE: &str = "service";
    /// Endpoints of a Service.
    pub const ENDPOINTS: &str = "endpoints";
    /// A TokenRequest of a ServiceAccount.
    pub const SERVICE_ACCOUNT_TOKEN: &str = "serviceaccounttoken";
    /// An Event.
    pub const EVENT: &str = "event";
    /// A Lease.
    pub const LEASE: &str = "lease";
    /// A CertificateSigningRequest.
    pub const CERTIFICATE_SIGNING_REQUEST: &str = "certificatesigningrequest";
    /// A PersistentVolume.
    pub const PERSISTENT_VOLUME: &str = "persistentvolume";
    /// A PersistentVolumeClaim.
    pub const PERSISTENT_VOLUME_CLAIM: &str = "persistentvolumeclaim";
    /// A RuntimeClass.
    pub const RUNTIME_CLASS: &str = "runtimeclass";
    /// A VolumeAttachment.
    pub const VOLUME_ATTACHMENT: &str = "volumeattachment";
    /// A Rule's counters.
    pub const RULE_STATUS: &str = "rulestatus";
    /// A Device.
    pub const DEVICE: &str = "device";
    /// A DeviceModel.
    pub const DEVICE_MODEL: &str = "devicemodel";
    /// The whole resource path of the request for the API server's CA.
    pub const CA_CERT: &str = "k8s/ca.crt";
    /// The whole resource path of the devices that come to a node or leave it.
    pub const MEMBERSHIP: &str = "membership";
    /// The whole resource path of all devices of a node: the question, and the list without a parent.
    pub const MEMBERSHIP_DETAIL: &str = "membership/detail";
    /// The whole resource path of the word that a report of a device has been taken.
    pub const TWIN: &str = "twin";
    /// The whole resource path of the in-process news of the connection.
    pub const NODE_CONNECTION: &str = "node/connection";
}
