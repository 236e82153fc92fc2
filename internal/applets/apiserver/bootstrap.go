package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/klog/v2"
	schedulingapiv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"k1s.io/k1s/internal/wait"
)

// Upstream writes the bootstrap roles and priority classes from hooks whose first try comes a second
// after the port has opened, and which then ask for and write one object after the other; /readyz waits
// for both. The hooks here write the same objects by the same rules, at once, from one list per kind,
// and several at a time. Everything that decides what an object has to look like is upstream's: the
// policy data and the reconciliation helpers.

const (
	// hookPatience is after which time the log tells what a hook waits for. Upstream's end the process then; on a machine that is too
	// slow for it each restart begins anew, and the server never comes up. /readyz names hooks that are not done.
	hookPatience = 30 * time.Second
	hookPause    = 50 * time.Millisecond
	writers      = 8
)

func hooks() map[string]genericapiserver.PostStartHookFunc {
	hook := func(what string, ensure func(context.Context, kubernetes.Interface) error) genericapiserver.PostStartHookFunc {
		return func(hc genericapiserver.PostStartHookContext) error {
			client, err := kubernetes.NewForConfig(hc.LoopbackClientConfig)
			if err != nil {
				return fmt.Errorf("making the loopback client: %w", err)
			}
			for hc.Err() == nil { // when the server is stopping an error would abort the process instead
				ctx, cancel := context.WithTimeout(hc, hookPatience)
				err := wait.Until(ctx, hookPause, what+" to be written", func(ctx context.Context) error { return ensure(ctx, client) })
				cancel()
				if err == nil {
					return nil
				}
				klog.FromContext(hc).Error(err, "a hook goes on")
			}
			return nil
		}
	}
	return map[string]genericapiserver.PostStartHookFunc{
		rbacrest.PostStartHookName:       hook("the bootstrap roles", ensureRoles),
		schedulingrest.PostStartHookName: hook("the system priority classes", ensurePriorityClasses),
	}
}

// policy is what has to be there when the API server is ready: upstream's bootstrap data for
// authorization, and our own.
func policy() rbacrest.PolicyData {
	p, k1s := upstream(), own()
	p.ClusterRoles = append(p.ClusterRoles, k1s.ClusterRoles...)
	p.ClusterRoleBindings = append(p.ClusterRoleBindings, k1s.ClusterRoleBindings...)
	return p
}

func upstream() rbacrest.PolicyData {
	return rbacrest.PolicyData{
		ClusterRoles:               append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...),
		ClusterRoleBindings:        append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...),
		Roles:                      bootstrappolicy.NamespaceRoles(),
		RoleBindings:               bootstrappolicy.NamespaceRoleBindings(),
		ClusterRolesToAggregate:    bootstrappolicy.ClusterRolesToAggregate(),
		ClusterRoleBindingsToSplit: bootstrappolicy.ClusterRoleBindingsToSplit(),
	}
}

func ensurePriorityClasses(ctx context.Context, client kubernetes.Interface) error {
	classes := client.SchedulingV1().PriorityClasses()
	list, err := classes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing priority classes: %w", err)
	}
	there := byName(list.Items)
	var work errgroup.Group
	for _, pc := range schedulingapiv1.SystemPriorityClasses() {
		if _, ok := there[pc.Name]; ok {
			continue
		}
		work.Go(func() error {
			if _, err := classes.Create(ctx, pc, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("creating priority class %s: %w", pc.Name, err)
			}
			klog.InfoS("Created priority class", "name", pc.Name, "value", pc.Value)
			return nil
		})
	}
	return work.Wait()
}

// ensureRoles is one try to make all roles and bindings what they have to be. Like upstream's it goes
// on after a failure and reports all of them.
func ensureRoles(ctx context.Context, client kubernetes.Interface) error {
	p := policy()
	have, err := listRoles(ctx, client, p)
	if err != nil {
		return err
	}
	if err := migrate(ctx, client, p, have); err != nil {
		return err
	}

	work := &reconciler{}
	work.SetLimit(writers)
	for _, role := range p.ClusterRoles {
		real := reconciliation.ClusterRoleModifier{Client: client.RbacV1().ClusterRoles()}
		work.role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &role}, real, func() (reconciliation.RuleOwner, bool) {
			r, ok := have.clusterRoles[role.Name]
			return reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, ok
		})
	}
	for _, binding := range p.ClusterRoleBindings {
		real := reconciliation.ClusterRoleBindingClientAdapter{Client: client.RbacV1().ClusterRoleBindings()}
		work.binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &binding}, real, func() (reconciliation.RoleBinding, bool) {
			b, ok := have.clusterRoleBindings[binding.Name]
			return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b}, ok
		})
	}
	for ns, roles := range p.Roles {
		for _, role := range roles {
			real := reconciliation.RoleModifier{Client: client.RbacV1(), NamespaceClient: client.CoreV1().Namespaces()}
			work.role(reconciliation.RoleRuleOwner{Role: &role}, real, func() (reconciliation.RuleOwner, bool) {
				r, ok := have.roles[ns][role.Name]
				return reconciliation.RoleRuleOwner{Role: &r}, ok
			})
		}
	}
	for ns, bindings := range p.RoleBindings {
		for _, binding := range bindings {
			real := reconciliation.RoleBindingClientAdapter{Client: client.RbacV1(), NamespaceClient: client.CoreV1().Namespaces()}
			work.binding(reconciliation.RoleBindingAdapter{RoleBinding: &binding}, real, func() (reconciliation.RoleBinding, bool) {
				b, ok := have.roleBindings[ns][binding.Name]
				return reconciliation.RoleBindingAdapter{RoleBinding: &b}, ok
			})
		}
	}
	return work.Wait()
}

// roles is what the server has at the moment, by name, or by namespace and name.
type roles struct {
	clusterRoles        map[string]rbacv1.ClusterRole
	clusterRoleBindings map[string]rbacv1.ClusterRoleBinding
	roles               map[string]map[string]rbacv1.Role
	roleBindings        map[string]map[string]rbacv1.RoleBinding
}

func listRoles(ctx context.Context, client kubernetes.Interface, p rbacrest.PolicyData) (roles, error) {
	r := roles{roles: map[string]map[string]rbacv1.Role{}, roleBindings: map[string]map[string]rbacv1.RoleBinding{}}
	var mu sync.Mutex // guards the two maps above
	rbac := client.RbacV1()
	var work errgroup.Group
	work.Go(func() error {
		l, err := rbac.ClusterRoles().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("listing cluster roles: %w", err)
		}
		r.clusterRoles = byName(l.Items)
		return nil
	})
	work.Go(func() error {
		l, err := rbac.ClusterRoleBindings().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("listing cluster role bindings: %w", err)
		}
		r.clusterRoleBindings = byName(l.Items)
		return nil
	})
	for ns := range p.Roles {
		work.Go(func() error {
			l, err := rbac.Roles(ns).List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("listing roles in %s: %w", ns, err)
			}
			mu.Lock()
			defer mu.Unlock()
			r.roles[ns] = byName(l.Items)
			return nil
		})
	}
	for ns := range p.RoleBindings {
		work.Go(func() error {
			l, err := rbac.RoleBindings(ns).List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("listing role bindings in %s: %w", ns, err)
			}
			mu.Lock()
			defer mu.Unlock()
			r.roleBindings[ns] = byName(l.Items)
			return nil
		})
	}
	return r, work.Wait()
}

// migrate carries over what a much older cluster (before 1.9, or before a binding was split) had under
// another name, before the new objects are made from scratch.
func migrate(ctx context.Context, client kubernetes.Interface, p rbacrest.PolicyData, have roles) error {
	for from, to := range p.ClusterRolesToAggregate {
		old, ok := have.clusterRoles[from]
		if _, done := have.clusterRoles[to]; done || !ok || old.AggregationRule != nil {
			continue
		}
		old = *old.DeepCopy()
		old.Name, old.ResourceVersion = to, ""
		made, err := client.RbacV1().ClusterRoles().Create(ctx, &old, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("migrating cluster role %s to %s: %w", from, to, err)
		}
		have.clusterRoles[to] = *made
	}
	for from, template := range p.ClusterRoleBindingsToSplit {
		old, ok := have.clusterRoleBindings[from]
		if _, done := have.clusterRoleBindings[template.Name]; done || !ok {
			continue
		}
		b := template.DeepCopy()
		b.Subjects, b.Labels, b.Annotations = old.Subjects, old.Labels, old.Annotations
		made, err := client.RbacV1().ClusterRoleBindings().Create(ctx, b, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("splitting cluster role binding %s into %s: %w", from, template.Name, err)
		}
		have.clusterRoleBindings[template.Name] = *made
	}
	return nil
}

// reconciler runs reconciliations side by side and collects their failures.
type reconciler struct {
	errgroup.Group
	mu   sync.Mutex
	errs []error // guarded by mu
}

func (r *reconciler) Wait() error {
	_ = r.Group.Wait() // the functions return nil and report to errs
	return errors.Join(r.errs...)
}

func (r *reconciler) run(kind, ns, name string, try func(cached bool) (string, error)) {
	r.Go(func() error {
		op, err := try(true)
		if err != nil && !apierrors.IsForbidden(err) {
			// What was listed is out of date, or the server is busy for a moment: ask again, as upstream does.
			err = retry.OnError(retry.DefaultBackoff, func(err error) bool {
				return apierrors.IsConflict(err) || apierrors.IsServiceUnavailable(err)
			}, func() (err error) { op, err = try(false); return err })
		}
		if err != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.errs = append(r.errs, fmt.Errorf("reconciling %s %s: %w", kind, name, err))
			return nil
		}
		if op != string(reconciliation.ReconcileNone) {
			klog.V(2).InfoS("Reconciled bootstrap object", "kind", kind, "namespace", ns, "name", name, "operation", op)
		}
		return nil
	})
}

func (r *reconciler) role(want reconciliation.RuleOwner, client reconciliation.RuleOwnerModifier, have func() (reconciliation.RuleOwner, bool)) {
	r.run("role", want.GetNamespace(), want.GetName(), func(cached bool) (string, error) {
		opts := reconciliation.ReconcileRoleOptions{Role: want, Client: client, Confirm: true}
		if cached {
			opts.Client = listedRoles{client, have}
		}
		result, err := opts.Run()
		if err != nil {
			return "", err
		}
		if result.Protected && result.Operation != reconciliation.ReconcileNone {
			klog.InfoS("Left a protected role alone that lacks permissions", "namespace", want.GetNamespace(), "name", want.GetName(), "missing", len(result.MissingRules))
			return string(reconciliation.ReconcileNone), nil
		}
		return string(result.Operation), nil
	})
}

func (r *reconciler) binding(want reconciliation.RoleBinding, client reconciliation.RoleBindingModifier, have func() (reconciliation.RoleBinding, bool)) {
	r.run("binding", want.GetNamespace(), want.GetName(), func(cached bool) (string, error) {
		opts := reconciliation.ReconcileRoleBindingOptions{RoleBinding: want, Client: client, Confirm: true}
		if cached {
			opts.Client = listedBindings{client, have}
		}
		result, err := opts.Run()
		if err != nil {
			return "", err
		}
		if result.Protected && result.Operation != reconciliation.ReconcileNone {
			klog.InfoS("Left a protected binding alone that lacks subjects", "namespace", want.GetNamespace(), "name", want.GetName(), "missing", len(result.MissingSubjects))
			return string(reconciliation.ReconcileNone), nil
		}
		return string(result.Operation), nil
	})
}

// listedRoles answers Get from what was listed and writes to the server.
type listedRoles struct {
	reconciliation.RuleOwnerModifier
	have func() (reconciliation.RuleOwner, bool)
}

func (l listedRoles) Get(_, name string) (reconciliation.RuleOwner, error) {
	if r, ok := l.have(); ok {
		return r, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: "roles"}, name)
}

// listedBindings is the same for bindings.
type listedBindings struct {
	reconciliation.RoleBindingModifier
	have func() (reconciliation.RoleBinding, bool)
}

func (l listedBindings) Get(_, name string) (reconciliation.RoleBinding, error) {
	if b, ok := l.have(); ok {
		return b, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: "rolebindings"}, name)
}

func byName[T any, P interface {
	*T
	GetName() string
}](items []T) map[string]T {
	out := make(map[string]T, len(items))
	for i := range items {
		out[P(&items[i]).GetName()] = items[i]
	}
	return out
}
