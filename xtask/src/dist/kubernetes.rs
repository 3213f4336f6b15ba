//! The DaemonSet in a real cluster: it gets ready under its probes, and tells of
//! a container that is killed for memory, by that container's own id.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::{root, run, text};
use crate::stage::read_text;

const MANIFEST: &str = "deploy/kubernetes/vahti.yaml";
/// The image that the manifest names.
const IMAGE: &str = "image: vahti:0.1.0";
/// Any with a shell.
const VICTIM_IMAGE: &str = "docker.io/library/busybox:1";
const PATIENCE: Duration = Duration::from_secs(120);

/// Why it can't be tried here, if it can't.
pub(super) fn cannot() -> Option<String> {
    if std::env::var_os("KUBECONFIG").is_none() {
        return Some("KUBECONFIG names no cluster".to_owned());
    }
    if std::env::var_os("VAHTI_IMAGE").is_none() {
        return Some("VAHTI_IMAGE names no image that the cluster can run".to_owned());
    }
    let asked =
        kubectl(&["version", "--client"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.err().map(|error| format!("kubectl is needed: {error}"))
}

/// Tries it in the cluster of `KUBECONFIG`, and removes what it made.
pub(super) fn check() -> Result<(), String> {
    let image = std::env::var("VAHTI_IMAGE").map_err(|e| format!("VAHTI_IMAGE: {e}"))?;
    let manifest = read_text(&root()?.join(MANIFEST))?;
    if !manifest.contains(IMAGE) {
        return Err(format!("{MANIFEST} does not say {IMAGE}"));
    }
    let manifest = manifest.replace(IMAGE, &format!("image: {image}"));
    let tried = apply(&manifest).and_then(|()| tells_of_a_kill());
    let logs = text(&mut kubectl(&["logs", "daemonset/vahti"]));
    let removed = remove(&manifest);
    tried.map_err(|error| {
        // Its events begin with a brace.
        let logs = logs.unwrap_or_else(|error| error);
        let log: Vec<&str> = logs.lines().filter(|line| !line.starts_with('{')).collect();
        format!("{error}\nits log:\n{}", log.join("\n"))
    })?;
    removed
}

fn kubectl(arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(["--namespace", "vahti"]).args(arguments);
    command
}

fn given(arguments: &[&str], input: &str) -> Result<(), String> {
    let mut child = kubectl(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("kubectl: {e}"))?;
    let mut stdin = child.stdin.take().ok_or("kubectl has no input")?;
    stdin.write_all(input.as_bytes()).map_err(|e| format!("kubectl: {e}"))?;
    drop(stdin);
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("kubectl {arguments:?} ended with {status}"))
    }
}

/// Rolled out means ready, by the kubelet's own probes.
fn apply(manifest: &str) -> Result<(), String> {
    given(&["apply", "--filename=-"], manifest)?;
    let patience = format!("--timeout={}s", PATIENCE.as_secs());
    run(kubectl(&["rollout", "status", "daemonset/vahti", &patience]).stdout(Stdio::null()))
}

fn remove(manifest: &str) -> Result<(), String> {
    given(&["delete", "--ignore-not-found", "--wait=true", "--filename=-"], manifest)
}

/// Starts a pod that takes more memory than it may, and looks for its
/// container's id in what the agent wrote.
fn tells_of_a_kill() -> Result<(), String> {
    given(&["apply", "--filename=-"], &victim().to_string())?;
    let begun = Instant::now();
    let mut id = String::new();
    while begun.elapsed() < PATIENCE {
        if id.is_empty() {
            id = ended_container()?;
        }
        if !id.is_empty() && is_told(&id)? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(500));
    }
    let state = text(&mut kubectl(&["get", "pod", "victim", "--output=wide"]))?;
    Err(format!("no oom_kill of container {id:?} is told; its pod:\n{state}"))
}

/// On each node there may be an agent; one node's is asked, so it runs there.
fn victim() -> Value {
    let image = std::env::var("VAHTI_VICTIM_IMAGE").unwrap_or_else(|_| VICTIM_IMAGE.to_owned());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "victim" },
        "spec": {
            "restartPolicy": "Never",
            "tolerations": [{ "operator": "Exists" }],
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "victim",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                // Long enough for the container to be known, then all at once.
                "command": ["sh", "-c", "sleep 1; exec tail /dev/zero"],
                "resources": { "limits": { "memory": "32Mi" } },
            }],
        },
    })
}

/// The id of the victim's container once it has ended, without the runtime's name.
fn ended_container() -> Result<String, String> {
    let id = text(&mut kubectl(&[
        "get",
        "pod",
        "victim",
        "--output=jsonpath={.status.containerStatuses[0].state.terminated.containerID}",
    ]))?;
    Ok(id.split_once("://").map_or(String::new(), |(_, id)| id.to_owned()))
}

/// Whether the agent on the victim's node wrote of it.
fn is_told(id: &str) -> Result<bool, String> {
    let node = text(&mut kubectl(&["get", "pod", "victim", "--output=jsonpath={.spec.nodeName}"]))?;
    let agent = text(&mut kubectl(&[
        "get",
        "pods",
        "--selector=app.kubernetes.io/name=vahti",
        &format!("--field-selector=spec.nodeName={node}"),
        "--output=jsonpath={.items[0].metadata.name}",
    ]))?;
    let lines = text(&mut kubectl(&["logs", &agent]))?;
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(events.into_iter().any(|event| {
        event["subtype"] == "oom_kill"
            && event["container"]["id"] == id
            && event["node"] == node.as_str()
    }))
}
