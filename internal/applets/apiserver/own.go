package apiserver

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
)

// Users of our own, as their certificates name them (package pki).
const (
	flannelUser       = "system:k1s:flannel"
	networkPolicyUser = "system:k1s:network-policy"
	kubeletClientUser = "kube-apiserver-kubelet-client"
)

// own is what k1s' own components may do. It is written with upstream's bootstrap roles, and so is there
// when the API server is ready: as a manifest applied afterwards it would keep the pod network, and with
// it the node, waiting.
func own() rbacrest.PolicyData {
	flannel := rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "k1s:flannel"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "watch"}},
			// flannel keeps its lease in annotations, which it writes through the node's status.
			{APIGroups: []string{""}, Resources: []string{"nodes/status"}, Verbs: []string{"patch"}},
		},
	}
	look := []string{"get", "list", "watch"}
	networkPolicy := rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "k1s:network-policy"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}, Verbs: look},
			{APIGroups: []string{""}, Resources: []string{"namespaces", "pods"}, Verbs: look},
		},
	}
	return rbacrest.PolicyData{
		ClusterRoles: []rbacv1.ClusterRole{flannel, networkPolicy},
		ClusterRoleBindings: []rbacv1.ClusterRoleBinding{
			bind("k1s:flannel", flannel.Name, flannelUser),
			bind("k1s:network-policy", networkPolicy.Name, networkPolicyUser),
			// logs, exec, port-forward and metrics: what the API server asks kubelets.
			bind("k1s:kubelet-api-admin", "system:kubelet-api-admin", kubeletClientUser),
		},
	}
}

func bind(name, role, user string) rbacv1.ClusterRoleBinding {
	return rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}
}
