"""Scheduler and kubelet of the only node: they bind pods, run them and write their status."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fake_cluster.containers import Container, command, environment
from fake_cluster.kinds import Object
from fake_cluster.sandboxed import Sandboxed, sandboxed
from fake_cluster.store import Store, condition, delete, editing, now, set_condition

NODE = "node-0"


class Kubelet:
    """Runs pods. The fields are the faults: what is broken now.

    Args:
        store: the cluster's objects.
        logs: a folder for the pods' output.
    """

    def __init__(self, store: Store, logs: Path) -> None:
        self.slow = 0.0
        self.broken_images: set[str] = set()
        self.pythons: dict[str, str] = {}
        self.no_room: str | None = None
        self.no_volume: str | None = None
        self._store = store
        self._logs = logs
        self._running: dict[str, Container | Sandboxed] = {}
        self._bound: dict[str, float] = {}
        self._ports: dict[str, int] = {}

    def reconcile(self, pod: Object) -> None:
        """Bring one pod a step further."""
        uid, container = pod["metadata"]["uid"], self._running.get(pod["metadata"]["uid"])
        going = "deletionTimestamp" in pod["metadata"]
        if container is not None:
            if going:
                container.stop(pod["metadata"]["deletionGracePeriodSeconds"])
            if (code := container.ended()) is not None:
                del self._running[uid]
                self._ended(pod, container, code)
        elif pod["status"]["phase"] in ("Pending", "Running"):
            with editing(self._store, pod) as pod:
                if going:
                    pod["status"]["phase"] = "Failed"
                elif self._bind(pod) and self._pull(pod):
                    self._start(pod)

    def running(self, pod: Object) -> Container | Sandboxed | None:
        """A pod's container, or None where it does not run."""
        return self._running.get(pod["metadata"]["uid"])

    def log(self, pod: str) -> Path:
        """The file with a pod's output."""
        return self._logs / f"{pod}.log"

    def kill_for_memory(self, pod: Object) -> None:
        """End the container as the kernel does when it is over its memory limit."""
        container = self._running[pod["metadata"]["uid"]]
        container.killed_for_memory = True
        container.kill()

    def evict(self, pod: Object, reason: str) -> None:
        """End a pod for a reason that is not its own, with SIGTERM first."""
        with editing(self._store, pod) as pod:
            set_condition(pod, "DisruptionTarget", True, reason, f"Pod was taken away: {reason}")
            if reason == "TerminationByKubelet":
                text = "The node was low on resource: memory."
                pod["status"].update(reason="Evicted", message=text)
                self._store.event(pod, "Warning", "Evicted", text, "kubelet")
            if reason == "PreemptionByScheduler":
                text = f"Preempted by pod 0 on node {NODE}"
                self._store.event(pod, "Normal", "Preempted", text, "default-scheduler")
        if reason == "TerminationByKubelet":
            self._running[pod["metadata"]["uid"]].stop(30)
        else:
            delete(self._store, pod, "Background")

    def lose_node(self, pod: Object) -> None:
        """The pod's node is gone with all on it; pod garbage collection says so."""
        if container := self._running.pop(pod["metadata"]["uid"], None):
            container.kill()
        with editing(self._store, pod) as pod:
            text = "PodGC: node no longer exists"
            set_condition(pod, "DisruptionTarget", True, "DeletionByPodGC", text)
            set_condition(pod, "Ready", False, "NodeLost", f"Node {NODE} is gone")
            pod["status"].update(phase="Failed", reason="NodeLost", message=f"Node {NODE} is gone")
            delete(self._store, pod, "Background")

    def stop(self) -> None:
        """Kill everything."""
        for container in self._running.values():
            container.kill()
        self._running.clear()

    def _bind(self, pod: Object) -> bool:
        if "nodeName" in pod["spec"]:
            return True
        if self.no_room is not None:
            if not _has(pod, "PodScheduled", self.no_room):
                set_condition(pod, "PodScheduled", False, "Unschedulable", self.no_room)
                self._event(pod, "Warning", "FailedScheduling", self.no_room, "default-scheduler")
            return False
        pod["spec"]["nodeName"] = NODE
        set_condition(pod, "PodScheduled", True, "")
        self._bound[pod["metadata"]["uid"]] = time.monotonic()
        text = f"Successfully assigned {pod['metadata']['name']} to {NODE}"
        self._event(pod, "Normal", "Scheduled", text, "default-scheduler")
        return True

    def _pull(self, pod: Object) -> bool:
        image = pod["spec"]["containers"][0]["image"]
        since = time.monotonic() - self._bound[pod["metadata"]["uid"]]
        if image in self.broken_images:
            text = f'failed to pull and unpack image "{image}": not found'
            backing_off = since > 0.2
            if backing_off:
                text = f'Back-off pulling image "{image}"'
            reason = "ImagePullBackOff" if backing_off else "ErrImagePull"
            if self._waits(pod, reason, text):
                self._event(pod, "Warning", "Failed", f"Error: {reason}")
                kind, why = ("Normal", "BackOff") if backing_off else ("Warning", "Failed")
                said = text if backing_off else f'Failed to pull image "{image}": {text}'
                self._event(pod, kind, why, said)
            return False
        if since < self.slow or self.no_volume is not None:
            if self._waits(pod, "ContainerCreating", "") and self.no_volume is not None:
                self._event(pod, "Warning", "FailedMount", self.no_volume)
            return False
        return True

    def _start(self, pod: Object) -> None:
        name, store = pod["metadata"]["name"], self._store
        try:
            variables = environment(store, pod, self._ports)
        except LookupError as missing:
            if self._waits(pod, "CreateContainerConfigError", str(missing.args[0])):
                self._event(pod, "Warning", "Failed", f"Error: {missing.args[0]}")
            return
        try:
            isolated = sandboxed(store, pod)
            python = self.pythons.get(pod["spec"]["containers"][0]["image"], sys.executable)
            words = command(pod, variables, python)
            container = isolated or Container(words, variables, self.log(name))
        except OSError as refused:
            state = {"exitCode": 128, "reason": "StartError", "message": str(refused)}
            _containers(pod, {"terminated": {**state, "finishedAt": now()}})
            pod["status"]["phase"] = "Failed"
            return
        self._running[pod["metadata"]["uid"]] = container
        _containers(pod, {"running": {"startedAt": now()}})
        pod["status"].update(phase="Running", podIP="127.0.0.1", hostIP="127.0.0.1")
        pod["status"].setdefault("startTime", now())
        set_condition(pod, "Ready", True, "")
        self._event(pod, "Normal", "Started", "Started container")

    def _ended(self, pod: Object, container: Container | Sandboxed, code: int) -> None:
        reason = "OOMKilled" if container.killed_for_memory else "Error" if code else "Completed"
        state = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": now()}}
        with editing(self._store, pod) as pod:
            policy = pod["spec"].get("restartPolicy", "Always")
            gone = condition(pod, "DisruptionTarget") or "deletionTimestamp" in pod["metadata"]
            _containers(pod, state)
            if not gone and (policy == "Always" or (policy == "OnFailure" and code != 0)):
                status = pod["status"]["containerStatuses"][0]
                status.update(restartCount=status["restartCount"] + 1, lastState=state)
                self._start(pod)
                return
            failed = code != 0 or pod["status"].get("reason") == "Evicted"
            pod["status"]["phase"] = "Failed" if failed else "Succeeded"
            set_condition(pod, "Ready", False, "PodFailed" if failed else "PodCompleted")

    def _waits(self, pod: Object, reason: str, message: str) -> bool:
        """Set the waiting state; whether it is new."""
        waiting = {"reason": reason, **({"message": message} if message else {})}
        old = pod["status"].get("containerStatuses", [{"state": {}}])[0]["state"]
        _containers(pod, {"waiting": waiting})
        return bool(old != {"waiting": waiting})

    def _event(self, pod: Object, kind: str, reason: str, text: str, by: str = "kubelet") -> None:
        self._store.event(pod, kind, reason, text, by)


def _containers(pod: Object, state: Object) -> None:
    spec, old = pod["spec"]["containers"][0], pod["status"].get("containerStatuses", [{}])[0]
    pod["status"]["containerStatuses"] = [{
        "name": spec["name"], "image": spec["image"], "imageID": "", "state": state,
        "lastState": old.get("lastState", {}), "restartCount": old.get("restartCount", 0),
        "ready": "running" in state, "started": "running" in state,
    }]  # fmt: skip


def _has(pod: Object, kind: str, message: str) -> bool:
    found = pod["status"].get("conditions", [])
    return any(c["type"] == kind and c["message"] == message for c in found)
