"""The cluster that tests use: server, controllers, faults, and what a test may ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from kubernetes import client

from fake_cluster import jobs, jobsets, queues
from fake_cluster.faults import Fault, Faults, Seen
from fake_cluster.kinds import Object
from fake_cluster.kubelet import Kubelet
from fake_cluster.server import Server
from fake_cluster.store import Store, collect, condition, delete, selector
from fake_cluster.verbs import Verbs

NAMESPACE = "hillclimb"
NO_QUOTA = "exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8"
NO_ROOM = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
_TICK = 0.02
T = TypeVar("T")


class FakeCluster:
    """See the package's documentation. A context manager.

    Args:
        folder: where the pods' output and the kubeconfig are kept.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store()
        self.faults = Faults()
        self.requests: list[Seen] = []
        self.errors: list[BaseException] = []
        self._closing = threading.Event()
        self.kubelet = Kubelet(self.store, folder)
        self.verbs = Verbs(self.store, self.log)
        self._folder = folder
        self.token = ""
        self._held: str | None = None
        self._refused: str | None = None
        self._server: Server | None = Server(self, 0)
        self._port = self._server.server_address[1]
        self._control = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeCluster:
        self._serve()
        self._control.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._control.join()
        self.kubelet.stop()
        self.down()
        assert not self.errors, self.errors

    @property
    def host(self) -> str:
        """The address of the API."""
        return f"http://127.0.0.1:{self._port}"

    def configuration(self) -> client.Configuration:
        """What the official client needs."""
        return client.Configuration(host=self.host)

    def kubeconfig(self) -> Path:
        """A file that names this cluster, for the KUBECONFIG of another process."""
        context = {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.host}}],
            "users": [{"name": "fake", "user": {"token": self.token} if self.token else {}}],
            "contexts": [{"name": "fake", "context": context}],
        }  # fmt: skip
        path = self._folder / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path

    def get(self, kind: str, name: str, namespace: str = NAMESPACE) -> Object | None:
        """The object, or None."""
        return self.store.get(kind, namespace, name)

    def objects(self, kind: str, labels: str = "", namespace: str = NAMESPACE) -> list[Object]:
        """The objects that a label selector matches, oldest first."""
        return self.store.list(kind, namespace, selector(labels))

    def condition(self, kind: str, name: str, how: str) -> Object | None:
        """The object's condition of that type while its status is "True", or None."""
        found = self.get(kind, name)
        return None if found is None else condition(found, how)

    def created(self, kind: str) -> list[str]:
        """The names of all objects of a kind ever made, in order."""
        return [name for made, name in self.store.created if made == kind]

    def log(self, pod: str) -> str:
        """A pod's output, also after the pod is gone."""
        path = self.kubelet.log(pod)
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, probe: Callable[[], T], seconds: float = 20) -> T:
        """What `probe()` gives as soon as it is true.

        Raises:
            AssertionError: if it is not in time; with the events of the cluster.
        """
        until = time.monotonic() + seconds
        while not (found := probe()):
            said = [f"{e['reason']}: {e['message']}" for e in self.store.list("Event")]
            assert time.monotonic() < until, f"it did not happen; events: {said}"
            time.sleep(_TICK)
        return found

    def answer(self, status: int, times: int = 1, **where: str) -> None:
        """Answer the next requests with this status, perhaps a `message`, and carry nothing out."""
        self.faults.add(Fault(times, **where, status=status))

    def lose_answers(self, times: int = 1, **where: str) -> None:
        """Carry the next requests out and close the connection without an answer."""
        self.faults.add(Fault(times, **where, lost=True))

    def hang(self, seconds: float, times: int = 1, **where: str) -> None:
        """Let the next requests wait, then carry them out."""
        self.faults.add(Fault(times, **where, seconds=seconds))

    def down(self) -> None:
        """Refuse connections; pods run on, controllers stand still."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def up(self) -> None:
        """Serve again on the same port."""
        self._server = Server(self, self._port)
        self._serve()

    def expire_watches(self) -> None:
        """Forget the history: open watches, and those from an older version, see 410."""
        self.store.expire()

    def slow_start(self, seconds: float) -> None:
        """Let pods that start from now on wait in ContainerCreating."""
        self.kubelet.slow = seconds

    def install(self, image: str, python: str) -> None:
        """Say which interpreter is the `python` of an image."""
        self.kubelet.pythons[image] = python

    def break_image(self, image: str) -> None:
        """Let pulls of an image fail."""
        self.kubelet.broken_images.add(image)

    def mend_image(self, image: str) -> None:
        """Let pulls of an image succeed again."""
        self.kubelet.broken_images.remove(image)

    def unschedulable(self, message: str = NO_ROOM) -> None:
        """Find no node for new pods."""
        self.kubelet.no_room = message

    def schedulable(self) -> None:
        """Find a node for pods again."""
        self.kubelet.no_room = None

    def refuse_pods(self, message: str = NO_QUOTA) -> None:
        """Let no Job make pods: a ResourceQuota is used up, or admission says no."""
        self._refused = message

    def allow_pods(self) -> None:
        """Let Jobs make pods again."""
        self._refused = None

    def break_volumes(self, message: str) -> None:
        """Let volumes of pods that start from now on not be mounted."""
        self.kubelet.no_volume = message

    def mend_volumes(self) -> None:
        """Let volumes be mounted again."""
        self.kubelet.no_volume = None

    def hold_queue(self, message: str = queues.NO_QUOTA) -> None:
        """Admit no further workload."""
        self._held = message

    def release_queue(self) -> None:
        """Admit workloads again."""
        self._held = None

    def preempt(self, kind: str, name: str) -> None:
        """Let Kueue take an object's quota back."""
        with self.store.lock:
            queues.preempt(self.store, self._existing(kind, name))

    def oom_kill(self, pod: str) -> None:
        """End a pod for its memory."""
        with self.store.lock:
            self.kubelet.kill_for_memory(self._existing("Pod", pod))

    def evict(self, pod: str, reason: str = "TerminationByKubelet") -> None:
        """Take a pod away; `reason` is that of its condition DisruptionTarget."""
        with self.store.lock:
            self.kubelet.evict(self._existing("Pod", pod), reason)

    def lose_node(self, pod: str) -> None:
        """Take a pod away with its node: no SIGTERM, nothing left of it."""
        with self.store.lock:
            self.kubelet.lose_node(self._existing("Pod", pod))

    def remove(self, kind: str, name: str) -> None:
        """Delete an object with what it owns, as somebody else would."""
        with self.store.lock:
            delete(self.store, self._existing(kind, name), "Background")

    def _existing(self, kind: str, name: str) -> Object:
        found = self.get(kind, name)
        assert found is not None, f"there is no {kind} {name}"
        return found

    def _serve(self) -> None:
        assert self._server is not None
        threading.Thread(target=self._server.serve_forever, args=(_TICK,), daemon=True).start()

    def _run(self) -> None:
        while not self._closing.wait(_TICK):
            if self._server is not None:
                try:
                    self._step()
                except Exception as error:
                    self.errors.append(error)

    def _step(self) -> None:
        steps: dict[str, Callable[[Object], None]] = {
            "JobSet": lambda made: jobsets.reconcile(self.store, made),
            "Job": lambda made: jobs.reconcile(self.store, made, self._refused),
            "Pod": self.kubelet.reconcile,
        }
        with self.store.lock:
            for kind in ("JobSet", "Job"):
                for made in self.store.list(kind):
                    queues.reconcile(self.store, made, self._held)
            for kind, step in steps.items():
                for made in self.store.list(kind):
                    step(made)
            jobs.release_orphans(self.store)
            collect(self.store)
