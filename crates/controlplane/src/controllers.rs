//! All controllers together: one informer per kind, each controller on its own task.

use std::sync::Arc;
use std::time::Duration;

use kubeapi::Api;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{
    CLAIMS, CUSTOM_RESOURCES, Client, DAEMON_SETS, DEPLOYMENTS, JOBS, LEASES, NAMESPACES, NODES, PODS, REPLICA_SETS,
    SERVICE_ACCOUNTS, SERVICES, STATEFUL_SETS, STORAGE_CLASSES, VOLUMES,
};
use crate::informer::Informer;
use crate::queue::WorkQueue;
use crate::reconcile::{self, Reconcile};
use crate::{
    customresources, daemonset, deployment, endpoints, events, garbage, job, namespace, nodelifecycle, podgc,
    replicaset, scheduler, serviceaccount, statefulset, volumes,
};

/// Starts all controllers on the tracker; they end when the token is cancelled.
pub fn start(api: &Api, ca_certificate: String, node_grace: Duration, tasks: &TaskTracker, token: &CancellationToken) {
    let client = |component: &str| Client::new(api.clone(), component);
    let mut pods = Informer::new(PODS);
    let mut nodes = Informer::new(NODES);
    let mut namespaces = Informer::new(NAMESPACES);
    let mut services = Informer::new(SERVICES);
    let mut accounts = Informer::new(SERVICE_ACCOUNTS);
    let mut deployments = Informer::new(DEPLOYMENTS);
    let mut sets = Informer::new(REPLICA_SETS);
    let mut daemons = Informer::new(DAEMON_SETS);
    let mut leases = Informer::new(LEASES);
    let mut stateful = Informer::new(STATEFUL_SETS);
    let mut jobs = Informer::new(JOBS);
    let mut claims = Informer::new(CLAIMS);
    let mut persistent = Informer::new(VOLUMES);
    let mut classes = Informer::new(STORAGE_CLASSES);
    let mut definitions = Informer::new(CUSTOM_RESOURCES);
    let (events, writer) = events::recorder(client("events"));

    let mut crew = Crew { tasks, token, synced: Vec::new() };
    let deployments_controller =
        deployment::new(client("deployment-controller"), &events, &mut deployments, &mut sets, &mut pods);
    let sets_controller = replicaset::new(client("replicaset-controller"), &events, &mut sets, &mut pods);
    let daemons_controller =
        daemonset::new(client("daemonset-controller"), &events, &mut daemons, &mut nodes, &mut pods);
    let stateful_controller =
        statefulset::new(client("statefulset-controller"), &events, &mut stateful, &mut pods, &claims);
    let jobs_controller = job::new(client("job-controller"), &events, &mut jobs, &mut pods);
    let scheduler = scheduler::new(
        client("kube-scheduler"),
        &events,
        &mut nodes,
        &mut pods,
        [&mut claims, &mut persistent, &mut classes],
    );
    let binder = volumes::new(client("persistentvolume-binder"), &events, &mut claims, &mut persistent, &mut classes);
    let protection =
        volumes::protection::new(client("pv-protection-controller"), &mut claims, &mut persistent, &mut pods);
    let nodes_controller =
        nodelifecycle::new(client("node-controller"), &events, &mut nodes, &mut pods, &mut leases, node_grace);
    let pod_collector = podgc::new(client("pod-garbage-collector"), &events, &mut nodes, &mut pods);
    let namespaces_controller = namespace::new(client("namespace-controller"), &mut namespaces, &mut pods);
    let accounts_controller =
        serviceaccount::new(client("service-account-controller"), &mut namespaces, &mut accounts, ca_certificate);
    let endpoints_controller = endpoints::new(client("endpoint-controller"), &mut services, &mut pods);
    let customs_controller = customresources::new(client("customresource-controller"), &mut definitions);
    let (collector, watches, collector_queue) = {
        let mut shared = [
            (&PODS, &mut pods),
            (&NODES, &mut nodes),
            (&NAMESPACES, &mut namespaces),
            (&SERVICES, &mut services),
            (&SERVICE_ACCOUNTS, &mut accounts),
            (&DEPLOYMENTS, &mut deployments),
            (&REPLICA_SETS, &mut sets),
            (&DAEMON_SETS, &mut daemons),
            (&LEASES, &mut leases),
            (&STATEFUL_SETS, &mut stateful),
            (&JOBS, &mut jobs),
            (&CLAIMS, &mut claims),
            (&VOLUMES, &mut persistent),
            (&STORAGE_CLASSES, &mut classes),
        ];
        garbage::new(client("garbage-collector"), &mut shared, &mut definitions)
    };

    for informer in [
        pods,
        nodes,
        namespaces,
        services,
        accounts,
        deployments,
        sets,
        daemons,
        leases,
        stateful,
        jobs,
        claims,
        persistent,
        classes,
        definitions,
    ] {
        crew.synced.push(informer.synced());
        tasks.spawn(informer.run(client("informer"), token.clone()));
    }
    tasks.spawn(writer.run(token.clone()));
    tasks.spawn(watches.run(token.clone()));
    crew.hire(deployments_controller);
    crew.hire(sets_controller);
    crew.hire(daemons_controller);
    crew.hire(stateful_controller);
    crew.hire(jobs_controller);
    crew.hire(scheduler);
    crew.hire(binder);
    crew.hire(protection);
    crew.hire(nodes_controller);
    crew.hire(pod_collector);
    crew.hire(namespaces_controller);
    crew.hire(accounts_controller);
    crew.hire(endpoints_controller);
    crew.hire(customs_controller);
    crew.hire((collector, collector_queue));
}

struct Crew<'a> {
    tasks: &'a TaskTracker,
    token: &'a CancellationToken,
    synced: Vec<watch::Receiver<bool>>,
}

impl Crew<'_> {
    /// Runs a controller once all caches are filled: it must not decide on half of the world.
    fn hire<C: Reconcile>(&self, (controller, queue): (C, Arc<WorkQueue>)) {
        let (token, synced) = (self.token.clone(), self.synced.clone());
        self.tasks.spawn(async move {
            for mut filled in synced {
                let ready = token.run_until_cancelled(filled.wait_for(|filled| *filled)).await;
                if !matches!(ready, Some(Ok(_))) {
                    return;
                }
            }
            reconcile::run(controller, queue, token).await;
        });
    }
}
