package addonmanager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/wait"
)

// fieldManager is the name under which the API server keeps our fields.
const fieldManager = "k1s"

// cluster is what we ask of the API server.
type cluster struct {
	dynamic   dynamic.Interface
	discovery discovery.DiscoveryInterface

	mu    sync.Mutex // guards found
	found map[schema.GroupVersionKind]kind
}

func newCluster(config *rest.Config) (*cluster, error) {
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return &cluster{dynamic: dyn, discovery: disco, found: map[schema.GroupVersionKind]kind{}}, nil
}

// kind finds out where a kind is served. The error is of kind errs.NotFound when it is not at all.
func (c *cluster) kind(gvk schema.GroupVersionKind) (kind, error) {
	if k, ok := builtin[gvk]; ok {
		return k, nil
	}
	c.mu.Lock()
	k, ok := c.found[gvk]
	c.mu.Unlock()
	if ok {
		return k, nil
	}
	list, err := c.discovery.ServerResourcesForGroupVersion(gvk.GroupVersion().String())
	if err != nil && !apierrors.IsNotFound(err) {
		return kind{}, fmt.Errorf("asking for the kinds of %s: %w", gvk.GroupVersion(), err)
	}
	if err == nil {
		for _, r := range list.APIResources {
			if r.Kind == gvk.Kind && !slices.Contains([]byte(r.Name), '/') {
				k := kind{gvk.GroupVersion().WithResource(r.Name), r.Namespaced}
				c.learn(gvk, k)
				return k, nil
			}
		}
	}
	return kind{}, errs.New(errs.NotFound, "the cluster has no kind %s in %s", gvk.Kind, gvk.GroupVersion())
}

func (c *cluster) learn(gvk schema.GroupVersionKind, k kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found[gvk] = k
}

// forget is for kinds that may have gone or moved.
func (c *cluster) forget(gvk schema.GroupVersionKind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.found, gvk)
}

// learnCRD takes from a definition what discovery would say about its kinds a little later.
func (c *cluster) learnCRD(u *unstructured.Unstructured) {
	group, _, _ := unstructured.NestedString(u.Object, "spec", "group")
	name, _, _ := unstructured.NestedString(u.Object, "spec", "names", "kind")
	plural, _, _ := unstructured.NestedString(u.Object, "spec", "names", "plural")
	scope, _, _ := unstructured.NestedString(u.Object, "spec", "scope")
	versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
	for _, v := range versions {
		m, _ := v.(map[string]any)
		version, _, _ := unstructured.NestedString(m, "name")
		if served, _, _ := unstructured.NestedBool(m, "served"); !served || version == "" || plural == "" {
			continue
		}
		gv := schema.GroupVersion{Group: group, Version: version}
		c.learn(gv.WithKind(name), kind{gv.WithResource(plural), scope == "Namespaced"})
	}
}

func (c *cluster) client(gvk schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	k, err := c.kind(gvk)
	if err != nil {
		return nil, err
	}
	r := c.dynamic.Resource(k.resource)
	if !k.namespaced {
		return r, nil
	}
	if namespace == "" {
		namespace = metav1Default
	}
	return r.Namespace(namespace), nil
}

// result is what applying an object led to.
type result struct {
	applied
	drift []conflict // fields left to somebody else
}

// apply makes an object what it should be. With force, fields that somebody else has set become ours;
// otherwise they stay as they are and are reported.
func (c *cluster) apply(ctx context.Context, o object, force bool) (result, error) {
	gvk := o.GroupVersionKind()
	client, err := c.client(gvk, o.GetNamespace())
	if err != nil {
		return result{}, err
	}
	res := result{applied: applied{ref: o.ref(), Version: gvk.Version}}
	wanted := any(o.Object)
	// A second round is enough unless somebody takes over more in between.
	for range 5 {
		var live *unstructured.Unstructured
		if live, err = c.patch(ctx, client, o.GetName(), wanted, force, false); err == nil {
			res.UID, res.Owned = string(live.GetUID()), owned(live)
			return res, nil
		}
		dropped := false
		for _, conflict := range conflicts(err) {
			if less, ok := without(wanted, conflict.field); ok {
				wanted, dropped = less, true
				res.drift = append(res.drift, conflict)
			}
		}
		if !dropped {
			break
		}
	}
	if apierrors.IsNotFound(err) {
		c.forget(gvk) // its definition may have been replaced
	}
	return result{}, err
}

func (c *cluster) patch(ctx context.Context, client dynamic.ResourceInterface, name string, obj any, force, dryRun bool) (*unstructured.Unstructured, error) {
	body, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	opts := metav1.PatchOptions{FieldManager: fieldManager, Force: &force, FieldValidation: metav1.FieldValidationStrict}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	return client.Patch(ctx, name, types.ApplyPatchType, body, opts)
}

// drift asks which fields of an object somebody else has set, without changing anything.
func (c *cluster) drift(ctx context.Context, o object) ([]conflict, error) {
	client, err := c.client(o.GroupVersionKind(), o.GetNamespace())
	if err != nil {
		return nil, err
	}
	_, err = c.patch(ctx, client, o.GetName(), o.Object, false, true)
	if found := conflicts(err); len(found) > 0 {
		return found, nil
	}
	return nil, err
}

// owned is a digest of the fields that are ours.
func owned(u *unstructured.Unstructured) string {
	for _, m := range u.GetManagedFields() {
		if m.Manager != fieldManager || m.Operation != metav1.ManagedFieldsOperationApply || m.Subresource != "" || m.FieldsV1 == nil {
			continue
		}
		var v any
		if json.Unmarshal(m.FieldsV1.Raw, &v) != nil {
			return ""
		}
		b, err := json.Marshal(v) // keys are sorted now, whatever way the fields came
		if err != nil {
			return ""
		}
		sum := sha256.Sum256(b)
		return hex.EncodeToString(sum[:8])
	}
	return ""
}

// look gets an object; nil when it is not there.
func (c *cluster) look(ctx context.Context, a applied) (*unstructured.Unstructured, error) {
	client, err := c.client(schema.GroupVersionKind{Group: a.Group, Version: a.Version, Kind: a.Kind}, a.Namespace)
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	u, err := client.Get(ctx, a.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return u, err
}

// remove deletes an object we applied. What is gone, was made anew by somebody else, or asks to be kept is
// left alone, and that is success.
func (c *cluster) remove(ctx context.Context, a applied) (removed bool, err error) {
	live, err := c.look(ctx, a)
	if err != nil || live == nil {
		return false, err
	}
	uid := live.GetUID()
	switch {
	case live.GetAnnotations()[keep] == "false":
		return false, nil
	case a.UID != "" && a.UID != string(uid):
		return false, nil
	case a.UID == "" && owned(live) == "":
		return false, nil // we meant to apply it and never did
	}
	gvk := schema.GroupVersionKind{Group: a.Group, Version: a.Version, Kind: a.Kind}
	client, err := c.client(gvk, a.Namespace)
	if err != nil {
		return false, err
	}
	background := metav1.DeletePropagationBackground
	err = client.Delete(ctx, a.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return false, nil
	}
	return err == nil, err
}

// established waits until a kind that was just defined is served.
func (c *cluster) established(ctx context.Context, a applied) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("not within 10s"))
	defer cancel()
	return wait.Until(ctx, 50*time.Millisecond, a.ref.String()+" to be established", func(ctx context.Context) error {
		u, err := c.look(ctx, a)
		switch {
		case err != nil:
			return err
		case u == nil:
			return wait.Permanent(errors.New("it was deleted"))
		}
		return condition(u, "Established")
	})
}

// condition is nil when an object's condition is true, otherwise it says why not.
func condition(u *unstructured.Unstructured, name string) error {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, item := range list {
		m, _ := item.(map[string]any)
		if m["type"] != name {
			continue
		}
		if m["status"] == "True" {
			return nil
		}
		message, _ := m["message"].(string)
		return fmt.Errorf("%s is not %s: %s", u.GetKind(), name, message)
	}
	return fmt.Errorf("%s is not %s yet", u.GetKind(), name)
}
