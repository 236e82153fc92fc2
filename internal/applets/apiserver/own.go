package apiserver

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
)

// Users of our own, as their certificates name them (package pki).
const (
	nodesGroup        = "system:nodes"
	networkPolicyUser = "system:k1s:network-policy"
	kubeletClientUser = "kube-apiserver-kubelet-client"
)

// own is what k1s' own components may do. It is written with upstream's bootstrap roles, and so is there
// when the API server is ready: as a manifest applied afterwards it would keep the pod network, and with
// it the node, waiting.
func own() rbacrest.PolicyData {
	// flannel has its node's own identity: it keeps its lease in annotations of that node, and of that one only the node
	// authorizer and NodeRestriction let it write. What it needs beside is to see the other nodes.
	flannel := rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "k1s:flannel"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "watch"}}},
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
			bind("k1s:flannel", flannel.Name, rbacv1.GroupKind, nodesGroup),
			bind("k1s:network-policy", networkPolicy.Name, rbacv1.UserKind, networkPolicyUser),
			// logs, exec, port-forward and metrics: what the API server asks kubelets.
			bind("k1s:kubelet-api-admin", "system:kubelet-api-admin", rbacv1.UserKind, kubeletClientUser),
		},
	}
}

func bind(name, role, kind, subject string) rbacv1.ClusterRoleBinding {
	return rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: kind, Name: subject}},
	}
}
