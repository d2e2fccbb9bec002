//! A terminal that changes its size while a command runs.

use std::process::{Command, Stdio};

use testkit::site::Site;

use super::{file, text};

#[test]
fn a_terminal_that_is_resized_is_resized_in_the_container() {
    let site = Site::start(73);
    site.create_pod("talk", &["sleep", "3600"]);
    site.until("the node's tunnel", || site.kubectl(&["exec", "talk", "--", "true"]).status.success());
    // What `script` has seen is in a file: when the first size is there (the command itself is, too), the terminal gets another one, as a window's does.
    let typescript = file(&site, "typescript");
    let seen = typescript.display();
    let resize = format!("until grep -q '20 70.$' {seen}; do sleep 0.1; done; stty cols 101 rows 33 </dev/tty");
    let inside = "until stty size | grep '20 70'; do sleep 0.1; done; until stty size | grep '33 101'; do sleep 0.1; done; echo resized";
    let kubectl = format!("kubectl --kubeconfig {}", site.cluster.kubeconfig().display());
    let line = format!(
        "stty cols 70 rows 20; ({resize}) & timeout --foreground 30 {kubectl} exec -it talk -- sh -c \"{inside}\""
    );
    let script = Command::new("script").args(["-qefc", &line]).arg(&typescript).stdin(Stdio::null()).output();
    let script = script.expect("script");
    let out = text(&script.stdout);
    assert!(script.status.success() && out.contains("20 70") && out.contains("33 101\r\nresized"), "{script:?}");
}
