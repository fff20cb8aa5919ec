"""The fields of JobSet and Kueue objects, as JSON schemas written from their API references.

JobSet jobset.x-k8s.io/v1alpha2 (0.13) and Kueue kueue.x-k8s.io/v1beta2 (0.20). Only `spec` is
described; metadata is that of every object. A field that is not listed is refused.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9-]+)*$"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
QUANTITY: Schema = {
    "type": "string",
    "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
ANYTHING: Schema = {}


def one_of(*values: str) -> Schema:
    """A word out of a closed list."""
    return {"enum": list(values)}


def many(item: Schema, least: int = 0, most: int = 1024) -> Schema:
    """A list."""
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def fields(required: str = "", /, **known: Schema) -> Schema:
    """An object of exactly these fields; `required` names, apart by spaces, those it must have."""
    return {
        "type": "object",
        "properties": known,
        "required": required.split(),
        "additionalProperties": False,
    }


SELECTOR = fields(
    matchLabels=LABELS,
    matchExpressions=many(
        fields(
            "key operator",
            key=TEXT,
            operator=one_of("In", "NotIn", "Exists", "DoesNotExist"),
            values=many(TEXT),
        )
    ),
)
RESTARTS = ("RestartJobSet", "RestartJob")
ACTIONS = ("FailJobSet", *RESTARTS, *(f"{name}AndIgnoreMaxRestarts" for name in RESTARTS))
JOBSET = fields(
    "replicatedJobs",
    replicatedJobs=many(
        fields(
            "name template",
            name=NAME,
            groupName=TEXT,
            template=fields("spec", metadata=ANYTHING, spec=ANYTHING),
            replicas=COUNT,
            dependsOn=many(
                fields("name status", name=NAME, status=one_of("Ready", "Complete")), most=5
            ),
        ),
        least=1,
    ),
    network=fields(enableDNSHostnames=FLAG, subdomain=NAME, publishNotReadyAddresses=FLAG),
    successPolicy=fields(
        "operator", operator=one_of("All", "Any"), targetReplicatedJobs=many(NAME)
    ),
    failurePolicy=fields(
        maxRestarts=COUNT,
        restartStrategy=one_of("Recreate", "BlockingRecreate", "InPlaceRestart"),
        rules=many(
            fields(
                "name action",
                name={"type": "string", "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                action=one_of(*ACTIONS),
                onJobFailureReasons=many(TEXT),
                onJobFailureMessagePatterns=many(TEXT),
                targetReplicatedJobs=many(NAME),
            )
        ),
    ),
    startupPolicy=fields("startupPolicyOrder", startupPolicyOrder=one_of("AnyOrder", "InOrder")),
    suspend=FLAG,
    coordinator=fields("replicatedJob", replicatedJob=NAME, jobIndex=COUNT, podIndex=COUNT),
    managedBy=TEXT,
    ttlSecondsAfterFinished=COUNT,
    volumeClaimPolicies=many(
        fields(
            templates=many(ANYTHING),
            retentionPolicy=fields(whenDeleted=one_of("Delete", "Retain")),
        ),
        most=50,
    ),
)
FLAVOR = fields(
    nodeLabels={**LABELS, "maxProperties": 8},
    nodeTaints=many(
        fields(
            "key effect",
            key=TEXT,
            value=TEXT,
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        ),
        most=8,
    ),
    tolerations=many(
        fields(
            key=TEXT,
            operator=one_of("Equal", "Exists"),
            value=TEXT,
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
            tolerationSeconds=COUNT,
        ),
        most=8,
    ),
    topologyName=NAME,
    resourceWeights={"type": "object", "additionalProperties": QUANTITY},
)
FAIR_SHARING = fields(weight=QUANTITY)
STOP = one_of("None", "Hold", "HoldAndDrain")
QUEUE = fields(
    resourceGroups=many(
        fields(
            "coveredResources flavors",
            coveredResources=many(TEXT, 1, 64),
            flavors=many(
                fields(
                    "name resources",
                    name=NAME,
                    resources=many(
                        fields(
                            "name nominalQuota",
                            name=TEXT,
                            nominalQuota=QUANTITY,
                            borrowingLimit=QUANTITY,
                            lendingLimit=QUANTITY,
                        ),
                        1,
                        64,
                    ),
                ),
                1,
                64,
            ),
        ),
        most=16,
    ),
    cohortName=NAME,
    queueingStrategy=one_of("StrictFIFO", "BestEffortFIFO"),
    namespaceSelector=SELECTOR,
    flavorFungibility=fields(
        whenCanBorrow=one_of("MayStopSearch", "TryNextFlavor"),
        whenCanPreempt=one_of("MayStopSearch", "TryNextFlavor"),
        preference=one_of("BorrowingOverPreemption", "PreemptionOverBorrowing"),
    ),
    preemption=fields(
        reclaimWithinCohort=one_of("Never", "LowerPriority", "Any"),
        borrowWithinCohort=fields(
            policy=one_of("Never", "LowerPriority"), maxPriorityThreshold={"type": "integer"}
        ),
        withinClusterQueue=one_of("Never", "LowerPriority", "LowerOrNewerEqualPriority"),
    ),
    admissionChecksStrategy=fields(
        "admissionChecks",
        admissionChecks=many(fields("name", name=NAME, onFlavors=many(NAME)), 1, 64),
    ),
    stopPolicy=STOP,
    fairSharing=FAIR_SHARING,
)
LOCAL_QUEUE = fields(clusterQueue=NAME, stopPolicy=STOP, fairSharing=FAIR_SHARING)

CRDS: dict[tuple[str, str], Schema] = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JOBSET,
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): FLAVOR,
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): QUEUE,
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): LOCAL_QUEUE,
}
