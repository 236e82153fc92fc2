package addonmanager

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"k1s.io/k1s/internal/addon"
)

// ready is nil when every object is, otherwise it says what is missing.
func (c *cluster) ready(ctx context.Context, objects []addon.Object) error {
	for _, o := range objects {
		gv, err := schema.ParseGroupVersion(o.APIVersion)
		if err != nil {
			return err
		}
		u, err := c.look(ctx, applied{ref: ref{gv.Group, o.Kind, o.Namespace, o.Name}, Version: gv.Version})
		switch {
		case err != nil:
			return err
		case u == nil:
			return fmt.Errorf("%s is not there", o)
		}
		if err := rolledOut(u); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	return nil
}

// rolledOut judges as `kubectl rollout status` does; of other kinds it judges conditions, and what has
// none is ready when it is there.
func rolledOut(u *unstructured.Unstructured) error {
	num := func(path ...string) int64 {
		n, _, _ := unstructured.NestedInt64(u.Object, path...)
		return n
	}
	if num("status", "observedGeneration") < u.GetGeneration() {
		switch u.GetKind() {
		case "Deployment", "DaemonSet", "StatefulSet":
			return fmt.Errorf("its controller has not seen it yet")
		}
	}
	switch u.GetKind() {
	case "Deployment", "StatefulSet":
		want, given, _ := unstructured.NestedInt64(u.Object, "spec", "replicas")
		if !given {
			want = 1
		}
		if n := num("status", "updatedReplicas"); n < want {
			return fmt.Errorf("%d of %d replicas are of the current version", n, want)
		}
		if n := num("status", "replicas"); n > want {
			return fmt.Errorf("%d old replicas are still there", n-want)
		}
		if n := num("status", "availableReplicas"); n < want {
			return fmt.Errorf("%d of %d replicas are available", n, want)
		}
	case "DaemonSet":
		want := num("status", "desiredNumberScheduled")
		if n := num("status", "updatedNumberScheduled"); n < want {
			return fmt.Errorf("%d of %d pods are of the current version", n, want)
		}
		if n := num("status", "numberAvailable"); n < want {
			return fmt.Errorf("%d of %d pods are available", n, want)
		}
	case "APIService":
		return condition(u, "Available")
	case "CustomResourceDefinition":
		return condition(u, "Established")
	case "Job":
		return condition(u, "Complete")
	}
	return nil
}
