//! Which pods have to go for a critical one: as few Guaranteed ones as possible, then Burstable, then BestEffort, and among
//! equals those that overshoot the need least.

use k8s_openapi::api::core::v1::Pod;

use super::{is_critical, predicates::Failure};
use crate::{
    qos,
    requests::{self, Amounts},
};

struct Candidate<'a> {
    pod: &'a Pod,
    requests: Amounts,
}

/// UIDs of the pods to end; the error says that no set of pods is enough.
pub(super) fn victims(pod: &Pod, others: &[&Pod], failures: &[Failure]) -> Result<Vec<String>, String> {
    let needs: Amounts = failures.iter().filter_map(Failure::missing).map(|(name, n)| (name.to_owned(), n)).collect();
    let class = |name: &str| -> Vec<Candidate<'_>> {
        let fitting = others.iter().filter(|other| may_preempt(pod, other) && qos::qos_class(other) == name);
        fitting.map(|pod| Candidate { pod, requests: requests::pod(pod) }).collect()
    };
    let (best_effort, burstable, guaranteed) = (class("BestEffort"), class("Burstable"), class("Guaranteed"));
    // What is needed of a class when all classes below it, and those chosen above it, are gone.
    let guaranteed = choose(guaranteed, without(without(needs.clone(), &best_effort), &burstable))?;
    let burstable = choose(burstable, without(without(needs.clone(), &best_effort), &guaranteed))?;
    let best_effort = choose(best_effort, without(without(needs, &burstable), &guaranteed))?;
    let chosen = guaranteed.iter().chain(&burstable).chain(&best_effort);
    Ok(chosen.filter_map(|candidate| candidate.pod.metadata.uid.clone()).collect())
}

fn may_preempt(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.priority);
    if is_critical(pod) && !is_critical(other) {
        return true;
    }
    matches!((priority(pod), priority(other)), (Some(own), Some(theirs)) if own > theirs)
}

fn without(mut needs: Amounts, gone: &[Candidate<'_>]) -> Amounts {
    for candidate in gone {
        needs = subtract(needs, candidate);
    }
    needs
}

fn subtract(needs: Amounts, candidate: &Candidate<'_>) -> Amounts {
    let freed = |name: &str| candidate.requests.get(name).copied().unwrap_or_default();
    needs.into_iter().map(|(name, need)| (freed(&name), name, need)).filter(|(freed, _, need)| need > freed).fold(
        Amounts::new(),
        |mut left, (freed, name, need)| {
            left.insert(name, need - freed);
            left
        },
    )
}

/// Takes the candidate nearest to the needs until they are met.
fn choose<'a>(mut candidates: Vec<Candidate<'a>>, mut needs: Amounts) -> Result<Vec<Candidate<'a>>, String> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let nearest = candidates.iter().enumerate().min_by(|(_, a), (_, b)| {
            let order = distance(&needs, a).total_cmp(&distance(&needs, b));
            order.then_with(|| size(a).cmp(&size(b)))
        });
        let Some((index, _)) = nearest else {
            let list: Vec<String> = needs.iter().map(|(name, need)| format!("(res: {name}, q: {need}), ")).collect();
            return Err(format!(
                "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: \
                 [{}]",
                list.concat()
            ));
        };
        let candidate = candidates.swap_remove(index);
        needs = subtract(needs, &candidate);
        chosen.push(candidate);
    }
    Ok(chosen)
}

/// How far a candidate's requests are from the needs: the squares of the parts that stay unmet.
#[expect(clippy::cast_precision_loss, reason = "only compared")]
fn distance(needs: &Amounts, candidate: &Candidate<'_>) -> f64 {
    let unmet = needs.iter().map(|(name, need)| {
        let left = need - candidate.requests.get(name).copied().unwrap_or_default();
        if left > 0 { (left as f64 / *need as f64).powi(2) } else { 0.0 }
    });
    unmet.sum()
}

/// Among equally near ones the smaller goes.
fn size(candidate: &Candidate<'_>) -> (i64, i64) {
    let of = |name: &str| candidate.requests.get(name).copied().unwrap_or_default();
    (of("memory"), of("cpu"))
}
