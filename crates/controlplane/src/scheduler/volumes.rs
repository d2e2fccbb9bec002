//! The claims of a pod: whether they can be had, on which nodes, and which volumes become theirs.

use crate::informer::Cache;
use crate::object::{Key, Object};
use crate::volumes::fit;
use crate::volumes::protection::{claims_of, uses};

/// The claims, volumes and classes that there are.
#[derive(Debug, Default)]
pub struct Stock {
    /// Claims of the pod's namespace.
    pub claims: Vec<Object>,
    /// All volumes.
    pub volumes: Vec<Object>,
    /// All classes.
    pub classes: Vec<Object>,
}

/// A volume that becomes a claim's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Name of the volume.
    pub volume: String,
    /// The claim.
    pub claim: Key,
}

/// What a pod needs of the node that it goes to.
#[derive(Debug, Default)]
pub struct Demand {
    /// Volumes that it must reach.
    bound: Vec<Object>,
    /// A bound claim's volume is gone.
    lost: bool,
    /// Claims that get a volume on that node, the smallest first.
    delayed: Vec<Object>,
    /// Claims that no other pod may use at the same time.
    exclusive: Vec<String>,
}

/// Why a pod goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// In the words of upstream.
    Because(String),
    /// A claim of it is just being bound: that it is so wakes the scheduler.
    NotYet,
}

impl Stock {
    /// What is known now, as far as it concerns the pod; nothing for a pod without claims.
    pub fn of(pod: &Object, claims: &Cache, volumes: &Cache, classes: &Cache) -> Self {
        if claims_of(pod).next().is_none() {
            return Self::default();
        }
        Self { claims: claims.in_namespace(pod.namespace()), volumes: volumes.all(), classes: classes.all() }
    }

    fn volume(&self, name: &str) -> Option<&Object> {
        self.volumes.iter().find(|volume| volume.name() == name)
    }

    /// What the pod demands.
    ///
    /// # Errors
    /// One of its claims cannot be had on any node.
    pub fn demand(&self, pod: &Object) -> Result<Demand, Refusal> {
        let mut demand = Demand::default();
        for name in claims_of(pod) {
            let claim = self.claims.iter().find(|claim| claim.name() == name);
            let claim = claim.ok_or_else(|| because(format!("persistentvolumeclaim \"{name}\" not found")))?;
            if claim.is_deleting() {
                return Err(because(format!("persistentvolumeclaim \"{name}\" is being deleted")));
            }
            let volume = claim.text("/spec/volumeName");
            if claim.text("/status/phase") == "Lost" {
                let why =
                    format!("persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\"");
                return Err(because(why));
            }
            if claim.list("/spec/accessModes").iter().any(|mode| mode == "ReadWriteOncePod") {
                demand.exclusive.push(name.to_owned());
            }
            if fit::is_bound(claim) {
                match self.volume(volume) {
                    Some(volume) => demand.bound.push(volume.clone()),
                    None => demand.lost = true,
                }
            } else if self.volumes.iter().any(|volume| fit::is_for(volume, claim)) {
                return Err(Refusal::NotYet);
            } else if volume.is_empty()
                && fit::class(&self.classes, claim.text("/spec/storageClassName")).is_some_and(fit::is_delayed)
            {
                demand.delayed.push(claim.clone());
            } else {
                return Err(because("pod has unbound immediate PersistentVolumeClaims".to_owned()));
            }
        }
        demand.delayed.sort_by_key(fit::wanted);
        Ok(demand)
    }

    /// The promises that let the pod run on the node.
    ///
    /// # Errors
    /// The node does not do; why, in upstream's words.
    pub fn on_node(
        &self,
        demand: &Demand,
        pod: &Object,
        node: &Object,
        others: &[Object],
    ) -> Result<Vec<Promise>, &'static str> {
        let taken = |claim: &String| others.iter().any(|o| o.namespace() == pod.namespace() && uses(o, claim));
        if demand.exclusive.iter().any(taken) {
            return Err("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode");
        }
        if demand.lost {
            return Err("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
        }
        if !demand.bound.iter().all(|volume| fit::reaches(node, volume)) {
            return Err("node(s) had volume node affinity conflict");
        }
        let mut promises: Vec<Promise> = Vec::new();
        for claim in &demand.delayed {
            let free = |v: &Object| fit::reaches(node, v) && !promises.iter().any(|p| p.volume == v.name());
            match fit::find(claim, &self.volumes, free) {
                Some(volume) => promises.push(Promise { volume: volume.name().to_owned(), claim: claim.key() }),
                None => return Err("node(s) didn't find available persistent volumes to bind"),
            }
        }
        Ok(promises)
    }
}

fn because(why: String) -> Refusal {
    Refusal::Because(why)
}
