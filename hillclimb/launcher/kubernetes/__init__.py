"""Stages on a Kubernetes cluster: manifests, the launcher, and why something waits or failed."""

from hillclimb.launcher.kubernetes.launcher import KubernetesLauncher
from hillclimb.launcher.kubernetes.manifests import stage_manifest

__all__ = ["KubernetesLauncher", "stage_manifest"]
