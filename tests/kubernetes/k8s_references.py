"""Rules for a set of objects: what one names, another has to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from k8s_documents import Object, name_of
from k8s_pods import PodTemplate, pods

CLUSTER_WIDE = (
    "ClusterQueue", "ClusterRole", "ClusterRoleBinding", "Namespace", "PersistentVolume",
    "ResourceFlavor", "RuntimeClass",
)  # fmt: skip
USERS_OWN = {("Secret", "hillclimb-postgres"), ("Secret", "hillclimb-object-store")}
"""What people make before they install; docs/kubernetes.md gives the commands."""


def reference_errors(objects: Sequence[Object]) -> list[str]:
    """Every name that leads nowhere, one sentence each."""
    found = [*_names(objects), *_accounts(objects), *_roles(objects), *_queues(objects)]
    templates = list(pods(objects))
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            found += _own_selector(item)
        elif item["kind"] == "Service":
            found += _service(item, templates)
        elif item["kind"] == "PodDisruptionBudget":
            found += _budget(item, templates)
    for pod in templates:
        found += [f"{name_of(pod.owner)}: {error}" for error in _pod(pod, objects)]
    return found


def of_kind(
    objects: Sequence[Object], kind: str, namespace: str | None = None
) -> dict[str, Object]:
    """The objects of a kind, by name."""
    return {
        item["metadata"]["name"]: item
        for item in objects
        if item["kind"] == kind and namespace in (None, item["metadata"].get("namespace"))
    }


def _names(objects: Sequence[Object]) -> Iterator[str]:
    for name, count in Counter(map(name_of, objects)).items():
        if count > 1:
            yield f"{name} is there {count} times"
    spaces = of_kind(objects, "Namespace")
    for item in objects:
        space = item["metadata"].get("namespace")
        if item["kind"] in CLUSTER_WIDE:
            if space is not None:
                yield f"{name_of(item)}: this kind has no namespace"
        elif space not in spaces:
            yield f"{name_of(item)}: there is no namespace {space}"


def _own_selector(item: Object) -> Iterator[str]:
    wanted = item["spec"]["selector"]["matchLabels"].items()
    if not wanted <= item["spec"]["template"]["metadata"]["labels"].items():
        yield f"{name_of(item)}: its selector does not match its own pods"


def chosen(selector: Object, namespace: str, templates: Sequence[PodTemplate]) -> list[PodTemplate]:
    """The pods of a namespace that have all of these labels."""
    wanted = selector.items()
    return [p for p in templates if p.namespace == namespace and wanted <= p.labels.items()]


def _service(item: Object, templates: Sequence[PodTemplate]) -> Iterator[str]:
    spec, who = item["spec"], name_of(item)
    behind = chosen(spec["selector"], item["metadata"]["namespace"], templates)
    if len({name_of(pod.owner) for pod in behind}) != 1:
        yield f"{who}: its selector must match the pods of one workload"
    for pod in behind:
        ports = {p["name"]: p["containerPort"] for c in pod.containers for p in c.get("ports", ())}
        for port in spec["ports"]:
            target = ports.get(port["targetPort"])
            if target is None:
                yield f"{who}: {name_of(pod.owner)} has no port {port['targetPort']}"
            elif spec.get("clusterIP") == "None" and target != port["port"]:
                yield f"{who}: a headless service cannot turn port {port['port']} into {target}"


def _budget(item: Object, templates: Sequence[PodTemplate]) -> Iterator[str]:
    selector = item["spec"]["selector"]["matchLabels"]
    behind = chosen(selector, item["metadata"]["namespace"], templates)
    if not behind:
        yield f"{name_of(item)}: its selector matches no pods"
    for pod in behind:
        if item["spec"]["minAvailable"] >= pod.owner["spec"]["replicas"]:
            yield f"{name_of(item)}: it never lets a node of {name_of(pod.owner)} be drained"


def _pod(pod: PodTemplate, objects: Sequence[Object]) -> Iterator[str]:
    for kind, name, optional in _named(pod):
        known = of_kind(objects, kind, pod.namespace)
        if name not in known and (kind, name) not in USERS_OWN and not optional:
            yield f"there is no {kind} {name} in {pod.namespace}"
    for kind, name, key in _keys(pod):
        found = of_kind(objects, kind, pod.namespace).get(name)
        if found and key not in {**found.get("data", {}), **found.get("stringData", {})}:
            yield f"{kind} {name} has no key {key}"


def _named(pod: PodTemplate) -> Iterator[tuple[str, str, bool]]:
    if "serviceAccountName" in pod.spec:
        yield "ServiceAccount", pod.spec["serviceAccountName"], False
    for volume in pod.spec.get("volumes", ()):
        if "configMap" in volume:
            yield (
                "ConfigMap",
                volume["configMap"]["name"],
                volume["configMap"].get("optional", False),
            )
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], volume["secret"].get("optional", False)
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], False
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source:
                    yield kind, source[field]["name"], source[field].get("optional", False)
    for kind, name, _ in _keys(pod):
        yield kind, name, False


def _keys(pod: PodTemplate) -> Iterator[tuple[str, str, str]]:
    for container in pod.containers:
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if field in source:
                    yield kind, source[field]["name"], source[field]["key"]


def _accounts(objects: Sequence[Object]) -> Iterator[str]:
    """A token is mounted where the account may do something, and nowhere else."""
    bound = {
        (subject["namespace"], subject["name"])
        for item in objects
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding")
        for subject in item["subjects"]
    }
    for pod in pods(objects):
        account = pod.spec.get("serviceAccountName", "default")
        may = (pod.namespace, account) in bound
        mounts = pod.spec.get("automountServiceAccountToken", True)
        if mounts and not may:
            yield f"{name_of(pod.owner)}: it mounts a token with which it may do nothing"
    for item in objects:
        if item["kind"] == "ServiceAccount" and item.get("automountServiceAccountToken", True):
            yield f"{name_of(item)}: set automountServiceAccountToken to false"


def _roles(objects: Sequence[Object]) -> Iterator[str]:
    for item in objects:
        who = name_of(item)
        if item["kind"] in ("Role", "ClusterRole"):
            for rule in item["rules"]:
                yield from (f"{who}: {error}" for error in _rule(item["kind"], rule))
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            kind = item["kind"].removesuffix("Binding")
            space = item["metadata"].get("namespace")
            if item["roleRef"]["kind"] != kind or item["roleRef"]["name"] not in of_kind(
                objects, kind, space
            ):
                yield f"{who}: there is no {kind} {item['roleRef']['name']}"
            for subject in item["subjects"]:
                if subject["name"] not in of_kind(objects, "ServiceAccount", subject["namespace"]):
                    yield f"{who}: there is no account {subject['namespace']}/{subject['name']}"


def _rule(kind: str, rule: Object) -> Iterator[str]:
    if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]):
        yield "name what is used instead of *"
    if "secrets" in rule["resources"]:
        yield "nothing here reads secrets through the API"
    if kind == "ClusterRole" and (rule["verbs"] != ["get"] or not rule.get("resourceNames")):
        yield "over the whole cluster only single objects may be read, by name"


def _queues(objects: Sequence[Object]) -> Iterator[str]:
    flavors, queues = of_kind(objects, "ResourceFlavor"), of_kind(objects, "ClusterQueue")
    for queue in queues.values():
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                if flavor["name"] not in flavors:
                    yield f"{name_of(queue)}: there is no ResourceFlavor {flavor['name']}"
                if [r["name"] for r in flavor["resources"]] != group["coveredResources"]:
                    yield f"{name_of(queue)}: {flavor['name']} must give all covered resources"
    for queue in of_kind(objects, "LocalQueue").values():
        if queue["spec"]["clusterQueue"] not in queues:
            yield f"{name_of(queue)}: there is no ClusterQueue {queue['spec']['clusterQueue']}"
    for item in objects:
        meta = item["metadata"]
        wanted = meta.get("labels", {}).get("kueue.x-k8s.io/queue-name")
        if wanted and wanted not in of_kind(objects, "LocalQueue", meta.get("namespace")):
            yield f"{name_of(item)}: there is no LocalQueue {wanted}"
