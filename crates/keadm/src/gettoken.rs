//! `keadm gettoken`: the join token that cloudcore keeps in the cluster.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Secret;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use link::token::{self, TokenError};

use crate::{cli, terminal};

/// Where cloudcore keeps the token.
const NAMESPACE: &str = "kubeedge";
const SECRET: &str = "tokensecret";
const KEY: &str = "tokendata";
const DEFAULT_KUBECONFIG: &str = "/root/.kube/config";
/// For the whole request.
const DEADLINE: Duration = Duration::from_secs(20);

/// No token could be had.
#[derive(Debug, thiserror::Error)]
pub enum GetTokenError {
    /// The kubeconfig is missing or broken.
    #[error("kubeconfig {} cannot be used: name another with --kube-config", .0.display())]
    Kubeconfig(PathBuf, #[source] Box<KubeconfigError>),
    /// Its certificates are broken.
    #[error("kubeconfig {} cannot be used: its certificates or keys are wrong", .0.display())]
    Client(PathBuf, #[source] Box<kube::Error>),
    /// The API answers with an error.
    #[error(
        "the Kubernetes API at {server} did not give Secret {NAMESPACE}/{SECRET}: is it the right cluster, and does the kubeconfig allow reading it?"
    )]
    Api {
        /// Its address.
        server: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// Nobody is there, or not the one that the kubeconfig names.
    #[error("the Kubernetes API at {server} cannot be reached: is it running, and the kubeconfig the right one?")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The API does not answer.
    #[error("the Kubernetes API at {0} did not answer within {limit} s: is it running, and the kubeconfig the right one?", limit = DEADLINE.as_secs())]
    Silent(String),
    /// cloudcore has not been there.
    #[error(
        "Secret {NAMESPACE}/{SECRET} does not exist at {0}: start cloudcore on this cluster first, it makes the token"
    )]
    NoSecret(String),
    /// The Secret holds something else.
    #[error(
        "Secret {NAMESPACE}/{SECRET} holds no token under {KEY:?}: delete it and restart cloudcore, which makes a new one"
    )]
    NoToken,
}

/// Prints the token.
///
/// # Errors
/// The API cannot be asked, or has no token.
pub async fn run(args: &cli::GetToken) -> Result<(), GetTokenError> {
    let (client, server) = connect(args.kube_config.as_deref()).await?;
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let secret = tokio::time::timeout(DEADLINE, secrets.get_opt(SECRET))
        .await
        .map_err(|_| GetTokenError::Silent(server.clone()))?
        .map_err(|error| match error {
            kube::Error::Service(source) => GetTokenError::Unreachable { server: server.clone(), source },
            error => GetTokenError::Api { server: server.clone(), source: Box::new(error) },
        })?
        .ok_or(GetTokenError::NoSecret(server))?;
    let data = secret.data.unwrap_or_default().remove(KEY).ok_or(GetTokenError::NoToken)?;
    let token = String::from_utf8(data.0).map_err(|_| GetTokenError::NoToken)?;
    let (_, jwt) = token::split(&token).map_err(|_| GetTokenError::NoToken)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if token::check_times(jwt, now) == Err(TokenError::Expired) {
        terminal::complain(
            "warning: this token has expired: is cloudcore still running? It makes a new one at its start",
        );
    }
    terminal::say(token.trim());
    Ok(())
}

/// A client of the API, and its address.
///
/// # Errors
/// The kubeconfig cannot be used.
pub(crate) async fn connect(kube_config: Option<&Path>) -> Result<(Client, String), GetTokenError> {
    let path = kubeconfig(kube_config);
    let wrong = |error| GetTokenError::Kubeconfig(path.clone(), Box::new(error));
    let kubeconfig = Kubeconfig::read_from(&path).map_err(wrong)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)?;
    // Who asks wants to hear what the API says, and not wait until it says something else.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| GetTokenError::Client(path.clone(), Box::new(error)))?;
    Ok((client, server))
}

fn kubeconfig(named: Option<&Path>) -> PathBuf {
    let from_environment = || std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    named.map(Path::to_path_buf).or_else(from_environment).unwrap_or_else(|| DEFAULT_KUBECONFIG.into())
}
