package addonmanager

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// kind says where objects of a kind are served.
type kind struct {
	resource   schema.GroupVersionResource
	namespaced bool
}

// builtin are the kinds every API server of this version has. Knowing them saves asking, which costs a round
// trip per group just when the cluster starts. What is not here is asked for.
var builtin = func() map[schema.GroupVersionKind]kind {
	out := map[schema.GroupVersionKind]kind{}
	add := func(group, version string, namespaced bool, kinds ...string) {
		for i := 0; i < len(kinds); i += 2 {
			gv := schema.GroupVersion{Group: group, Version: version}
			out[gv.WithKind(kinds[i])] = kind{gv.WithResource(kinds[i+1]), namespaced}
		}
	}
	add("", "v1", false, "Namespace", "namespaces", "Node", "nodes", "PersistentVolume", "persistentvolumes")
	add("", "v1", true, "ConfigMap", "configmaps", "Secret", "secrets", "Service", "services", "ServiceAccount", "serviceaccounts",
		"Pod", "pods", "PersistentVolumeClaim", "persistentvolumeclaims", "Endpoints", "endpoints", "LimitRange", "limitranges",
		"ResourceQuota", "resourcequotas", "ReplicationController", "replicationcontrollers", "PodTemplate", "podtemplates", "Event", "events")
	add("apps", "v1", true, "Deployment", "deployments", "DaemonSet", "daemonsets", "StatefulSet", "statefulsets",
		"ReplicaSet", "replicasets", "ControllerRevision", "controllerrevisions")
	add("batch", "v1", true, "Job", "jobs", "CronJob", "cronjobs")
	add("autoscaling", "v2", true, "HorizontalPodAutoscaler", "horizontalpodautoscalers")
	add("autoscaling", "v1", true, "HorizontalPodAutoscaler", "horizontalpodautoscalers")
	add("policy", "v1", true, "PodDisruptionBudget", "poddisruptionbudgets")
	add("rbac.authorization.k8s.io", "v1", false, "ClusterRole", "clusterroles", "ClusterRoleBinding", "clusterrolebindings")
	add("rbac.authorization.k8s.io", "v1", true, "Role", "roles", "RoleBinding", "rolebindings")
	add("storage.k8s.io", "v1", false, "StorageClass", "storageclasses", "CSIDriver", "csidrivers", "CSINode", "csinodes", "VolumeAttachment", "volumeattachments")
	add("storage.k8s.io", "v1", true, "CSIStorageCapacity", "csistoragecapacities")
	add("networking.k8s.io", "v1", false, "IngressClass", "ingressclasses")
	add("networking.k8s.io", "v1", true, "Ingress", "ingresses", "NetworkPolicy", "networkpolicies")
	add("scheduling.k8s.io", "v1", false, "PriorityClass", "priorityclasses")
	add("node.k8s.io", "v1", false, "RuntimeClass", "runtimeclasses")
	add("discovery.k8s.io", "v1", true, "EndpointSlice", "endpointslices")
	add("coordination.k8s.io", "v1", true, "Lease", "leases")
	add("admissionregistration.k8s.io", "v1", false, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations",
		"ValidatingWebhookConfiguration", "validatingwebhookconfigurations", "ValidatingAdmissionPolicy", "validatingadmissionpolicies",
		"ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
	add("apiextensions.k8s.io", "v1", false, "CustomResourceDefinition", "customresourcedefinitions")
	add("apiregistration.k8s.io", "v1", false, "APIService", "apiservices")
	add("certificates.k8s.io", "v1", false, "CertificateSigningRequest", "certificatesigningrequests")
	add("flowcontrol.apiserver.k8s.io", "v1", false, "FlowSchema", "flowschemas", "PriorityLevelConfiguration", "prioritylevelconfigurations")
	return out
}()
