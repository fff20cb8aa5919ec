"""Who may reach whom under a set of network policies, as Kubernetes decides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k8s_documents import Object

WORLD = "world"


@dataclass(frozen=True)
class Peer:
    """A pod by its labels, or anything outside the cluster in the namespace `WORLD`."""

    namespace: str
    labels: tuple[tuple[str, str], ...] = ()


def may_reach(
    objects: Sequence[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the source may open a connection to a port of the target."""
    return _passes(objects, source, target, port, protocol, "Egress") and _passes(
        objects, target, source, port, protocol, "Ingress"
    )


def _passes(
    objects: Sequence[Object], own: Peer, other: Peer, port: int, protocol: str, way: str
) -> bool:
    """Whether `own` lets the connection out or in; where no policy selects it, it lets all."""
    if own.namespace == WORLD:
        return True
    policies = [
        item["spec"]
        for item in objects
        if item["kind"] == "NetworkPolicy"
        and item["metadata"]["namespace"] == own.namespace
        and way in item["spec"]["policyTypes"]
        and _matches(item["spec"]["podSelector"], dict(own.labels))
    ]
    rules = [rule for spec in policies for rule in spec.get(way.lower(), ())]
    return not policies or any(_admits(rule, objects, own, other, port, protocol) for rule in rules)


def _admits(
    rule: Object, objects: Sequence[Object], own: Peer, other: Peer, port: int, protocol: str
) -> bool:
    ports = rule.get("ports")
    if ports and not any(p["port"] == port and p.get("protocol", "TCP") == protocol for p in ports):
        return False
    peers = rule.get("to", rule.get("from"))
    return not peers or any(_is(peer, objects, own, other) for peer in peers)


def _is(peer: Object, objects: Sequence[Object], own: Peer, other: Peer) -> bool:
    if other.namespace == WORLD:
        return peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    if "namespaceSelector" in peer:
        if not _matches(peer["namespaceSelector"], _labels_of(objects, other.namespace)):
            return False
    elif other.namespace != own.namespace:
        return False
    if "ipBlock" in peer:
        return False
    return _matches(peer.get("podSelector", {}), dict(other.labels))


def _labels_of(objects: Sequence[Object], namespace: str) -> dict[str, str]:
    """A namespace's labels; the API server adds the name."""
    found = {"kubernetes.io/metadata.name": namespace}
    for item in objects:
        if item["kind"] == "Namespace" and item["metadata"]["name"] == namespace:
            found |= item["metadata"].get("labels", {})
    return found


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "only matchLabels are understood here"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
