"""A Kubernetes API server on loopback, with controllers, whose pods are processes of this machine.

    with FakeCluster(tmp_path) as cluster:
        api = client.BatchV1Api(client.ApiClient(cluster.configuration()))
        api.create_namespaced_job("hillclimb", job)
        cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))

Kinds: Pod Service Event ConfigMap Secret Job NetworkPolicy JobSet Workload LocalQueue, in any
namespace. Verbs: get, list, watch, create, patch (server-side apply, merge, strategic), delete,
and `log` for pods. What a manifest may not hold is answered 422 as the API server does: names and
labels of a wrong form, a wrong restartPolicy, changes of immutable fields.

Controllers: Job, JobSet, Kueue (an object with the label `kueue.x-k8s.io/queue-name` is suspended,
gets a Workload and is let in unless the queue is held), garbage collection by ownerReferences.

A pod runs the command of its only container: `python` is this interpreter, or that of the image
(`install`); the environment is the manifest's and PATH, HOME, PYTHONPATH, OMP_NUM_THREADS; a volume
is the host's folder of the same path; host names below the pod's subdomain are loopback addresses
in `env`, `command` and `args`, each its own, which is also the `status.podIP` that a pod of that
name reads in its environment; where MASTER_ADDR is such a name, MASTER_PORT is a free port shared
by the pods of one JobSet attempt.
There is no back-off between retries, and `ttlSecondsAfterFinished` is ignored.

What there is (`namespace` is "hillclimb" where it is not given):
    cluster.configuration()             kubernetes.client.Configuration of the server
    cluster.kubeconfig()                path of a file for the KUBECONFIG of another process
    cluster.get(kind, name)             the object as a dict, or None
    cluster.objects(kind, selector)     those that a label selector matches: "a=b,c in (d,e)"
    cluster.condition(kind, name, type) the condition while its status is "True", or None
    cluster.created(kind)               names of all ever made, in order: "nothing twice"
    cluster.log(pod)                    the pod's output, also after the pod is gone
    cluster.requests                    list of Seen(verb, kind, name, status), in order
    cluster.install(image, python)      which interpreter is the image's `python`
    cluster.wait_for(probe, seconds)    what `probe()` gives as soon as it is true; AssertionError

Faults of the API (`verb` and `kind` narrow them; None is any):
    cluster.answer(status, times, verb, kind, message)  any of 400 and above; nothing is carried out
    cluster.token = "…"                 whoever does not bear it sees 401
    cluster.lose_answers(times, verb, kind)     carried out, then the connection is closed
    cluster.hang(seconds, times, verb, kind)    waits first, then carried out
    cluster.down(), cluster.up()                connections refused; the same port again. Pods run
                                                on, nobody restarts or records anything meanwhile
    cluster.expire_watches()                    watches, open or from an older version, see 410

Faults of the cluster:
    cluster.slow_start(seconds)         pods wait in ContainerCreating from now on
    cluster.break_image(image), cluster.mend_image(image)     ErrImagePull, ImagePullBackOff
    cluster.unschedulable(message), cluster.schedulable()     PodScheduled False, FailedScheduling
    cluster.refuse_pods(message), cluster.allow_pods()        FailedCreate, as by a ResourceQuota
    cluster.break_volumes(message), cluster.mend_volumes()    ContainerCreating, FailedMount
    cluster.hold_queue(message), cluster.release_queue()      new workloads wait for quota
    cluster.preempt(kind, name)         Kueue takes the quota back: suspended, then queued again
    cluster.oom_kill(pod)               exit code 137, reason OOMKilled
    cluster.evict(pod, reason)          DisruptionTarget with reason "TerminationByKubelet" (the
                                        pod's own reason is Evicted), "PreemptionByScheduler",
                                        "EvictionByEvictionAPI" or "DeletionByTaintManager"
    cluster.lose_node(pod)              killed without SIGTERM, DisruptionTarget DeletionByPodGC
    cluster.remove(kind, name)          deleted behind the launcher's back
"""

from fake_cluster.cluster import FakeCluster
from fake_cluster.faults import Seen

__all__ = ["FakeCluster", "Seen"]
