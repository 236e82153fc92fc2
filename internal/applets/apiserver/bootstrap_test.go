package apiserver

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/component-helpers/auth/rbac/validation"
	schedulingapiv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
)

func writes(c *fake.Clientset) []string {
	var out []string
	for _, a := range c.Actions() {
		if !slices.Contains([]string{"get", "list", "watch"}, a.GetVerb()) {
			out = append(out, a.GetVerb()+" "+a.GetResource().Resource)
		}
	}
	return out
}

// everything is what the server has, by kind, namespace and name, reduced to what policy decides.
func everything(t *testing.T, c kubernetes.Interface) map[string]any {
	t.Helper()
	out := map[string]any{}
	ctx := t.Context()
	cr, err := c.RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range cr.Items {
		o.TypeMeta, o.ManagedFields = metav1.TypeMeta{}, nil // the fake's
		out["clusterrole/"+o.Name] = o
	}
	crb, err := c.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range crb.Items {
		o.TypeMeta, o.ManagedFields = metav1.TypeMeta{}, nil // the fake's
		out["clusterrolebinding/"+o.Name] = o
	}
	r, err := c.RbacV1().Roles("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range r.Items {
		o.TypeMeta, o.ManagedFields = metav1.TypeMeta{}, nil // the fake's
		out["role/"+o.Namespace+"/"+o.Name] = o
	}
	rb, err := c.RbacV1().RoleBindings("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range rb.Items {
		o.TypeMeta, o.ManagedFields = metav1.TypeMeta{}, nil // the fake's
		out["rolebinding/"+o.Namespace+"/"+o.Name] = o
	}
	return out
}

func wanted() map[string]any {
	p := policy()
	out := map[string]any{}
	for _, o := range p.ClusterRoles {
		out["clusterrole/"+o.Name] = o
	}
	for _, o := range p.ClusterRoleBindings {
		out["clusterrolebinding/"+o.Name] = o
	}
	for ns, all := range p.Roles {
		for _, o := range all {
			out["role/"+ns+"/"+o.Name] = o
		}
	}
	for ns, all := range p.RoleBindings {
		for _, o := range all {
			out["rolebinding/"+ns+"/"+o.Name] = o
		}
	}
	return out
}

func TestAnEmptyServerGetsExactlyUpstreamsRolesAndBindingsAndOurs(t *testing.T) {
	c := fake.NewClientset()
	if err := ensureRoles(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got, want := everything(t, c), wanted()
	if len(want) < 100 {
		t.Fatalf("only %d objects in upstream's policy: this test looks in the wrong place", len(want))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !reflect.DeepEqual(got[name], want[name]) {
			t.Errorf("%s\ngot  %+v\nwant %+v", name, got[name], want[name])
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is in no policy", name)
	}
}

func TestASecondRunWritesNothing(t *testing.T) {
	c := fake.NewClientset()
	if err := ensureRoles(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := ensurePriorityClasses(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.ClearActions()
	if err := ensureRoles(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := ensurePriorityClasses(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if w := writes(c); len(w) > 0 {
		t.Errorf("it wrote: %q", w)
	}
}

func TestChangedRolesAreMendedAndProtectedOnesLeftAlone(t *testing.T) {
	c := fake.NewClientset()
	ctx := t.Context()
	if err := ensureRoles(ctx, c); err != nil {
		t.Fatal(err)
	}
	roles := c.RbacV1().ClusterRoles()
	strip := func(name string, protect bool) *rbacv1.ClusterRole {
		t.Helper()
		r, err := roles.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		full := r.DeepCopy()
		r.Rules = nil
		if protect {
			r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
		}
		if _, err := roles.Update(ctx, r, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		return full
	}
	want := strip("system:node", false)
	strip("system:kube-scheduler", true)
	if err := roles.Delete(ctx, "view", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// A binding that points elsewhere cannot be changed, it has to be made anew.
	b, err := c.RbacV1().ClusterRoleBindings().Get(ctx, "system:node-proxier", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.RoleRef.Name = "edit"
	if _, err := c.RbacV1().ClusterRoleBindings().Update(ctx, b, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}

	if err := ensureRoles(ctx, c); err != nil {
		t.Fatal(err)
	}
	got := everything(t, c)
	// Missing rules are added one verb and one resource at a time.
	if ok, missing := validation.Covers(got["clusterrole/system:node"].(rbacv1.ClusterRole).Rules, want.Rules); !ok {
		t.Errorf("system:node lacks %v", missing)
	}
	if r := got["clusterrole/system:kube-scheduler"].(rbacv1.ClusterRole); len(r.Rules) != 0 {
		t.Error("a protected role was changed")
	}
	if _, ok := got["clusterrole/view"]; !ok {
		t.Error("a deleted role was not made again")
	}
	if b := got["clusterrolebinding/system:node-proxier"].(rbacv1.ClusterRoleBinding); b.RoleRef.Name != "system:node-proxier" {
		t.Errorf("a binding still points to %s", b.RoleRef.Name)
	}
}

func TestOneObjectThatFailsDoesNotKeepTheOthersFromBeingWritten(t *testing.T) {
	c := fake.NewClientset()
	c.PrependReactor("create", "clusterroles", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if o := a.(k8stesting.CreateAction).GetObject().(*rbacv1.ClusterRole); o.Name == "view" {
			return true, nil, errors.New("boom")
		}
		return false, nil, nil
	})
	if err := ensureRoles(t.Context(), c); err == nil {
		t.Error("the failure is not reported")
	}
	if got, want := len(everything(t, c)), len(wanted())-1; got != want {
		t.Errorf("%d objects were written, want %d", got, want)
	}
}

func TestPriorityClassesAreUpstreams(t *testing.T) {
	c := fake.NewClientset()
	if err := ensurePriorityClasses(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	list, err := c.SchedulingV1().PriorityClasses().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int32{}
	for _, pc := range list.Items {
		got[pc.Name] = pc.Value
	}
	want := map[string]int32{}
	for _, pc := range schedulingapiv1.SystemPriorityClasses() {
		want[pc.Name] = pc.Value
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestHooksCarryUpstreamsNames(t *testing.T) {
	want := []string{rbacrest.PostStartHookName, schedulingrest.PostStartHookName}
	if got := slices.Sorted(maps.Keys(hooks())); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
