package addonmanager

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// Inventories are ConfigMaps in kube-system, one a stack. They are the memory of what was applied, so they
// travel with the cluster's database and not with a node.
const (
	inventoryNamespace = "kube-system"
	inventoryLabel     = "k1s.io/stack-of" // its value is the origin
)

// inventory is what was applied of a stack.
type inventory struct {
	// Hash of the content that was applied completely; "" when it was not.
	Hash    string
	Objects []applied
	// Drift are fields left to others, as text for people.
	Drift []string
}

var errNoName = errors.New("it does not say which stack it is of")

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

func (c *cluster) inventories() dynamic.ResourceInterface {
	return c.dynamic.Resource(configMaps).Namespace(inventoryNamespace)
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// inventoryName is the stack's name where that makes one; a packaged stack's is shorter, so that the two
// never meet.
func inventoryName(id stackID) string {
	prefix := "k1s-stack-"
	if id.origin == user {
		prefix += "user-"
	}
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(id.name), "-"), "-")
	if name != id.name || len(name) > 200 {
		sum := sha256.Sum256([]byte(id.name))
		name = strings.TrimLeft(name[:min(len(name), 180)]+"-"+hex.EncodeToString(sum[:4]), "-")
	}
	return prefix + name
}

// loadInventories reads all of them at once. One that somebody has broken is left out and returned among the
// broken: nothing is pruned by it, and applying its stack writes it anew.
func (c *cluster) loadInventories(ctx context.Context) (all map[stackID]inventory, broken []error, err error) {
	list, err := c.inventories().List(ctx, metav1.ListOptions{LabelSelector: inventoryLabel})
	if err != nil {
		return nil, nil, fmt.Errorf("reading what was applied before: %w", err)
	}
	all = map[stackID]inventory{}
	for _, u := range list.Items {
		data, _, _ := unstructured.NestedStringMap(u.Object, "data")
		id := stackID{origin(u.GetLabels()[inventoryLabel]), data["stack"]}
		inv := inventory{Hash: data["hash"]}
		err := json.Unmarshal([]byte(data["objects"]), &inv.Objects)
		if err == nil && data["drift"] != "" {
			err = json.Unmarshal([]byte(data["drift"]), &inv.Drift)
		}
		if err != nil || id.name == "" {
			broken = append(broken, fmt.Errorf("reading the inventory %s/%s: %w", inventoryNamespace, u.GetName(), cmp.Or(err, errNoName)))
			continue
		}
		all[id] = inv
	}
	return all, broken, nil
}

func (c *cluster) saveInventory(ctx context.Context, id stackID, inv inventory) error {
	objects, err := json.Marshal(inv.Objects)
	if err != nil {
		return err
	}
	data := map[string]any{"stack": id.name, "hash": inv.Hash, "objects": string(objects)}
	if len(inv.Drift) > 0 {
		drift, err := json.Marshal(inv.Drift)
		if err != nil {
			return err
		}
		data["drift"] = string(drift)
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{
			"name": inventoryName(id), "namespace": inventoryNamespace,
			"labels":      map[string]any{inventoryLabel: string(id.origin)},
			"annotations": map[string]any{"k1s.io/description": "what k1s applied from the manifests of this stack; used to remove what leaves it"},
		},
		"data": data,
	})
	if err != nil {
		return err
	}
	force := true
	_, err = c.inventories().Patch(ctx, inventoryName(id), types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
	if err != nil {
		return fmt.Errorf("remembering what is applied: %w", err)
	}
	return nil
}

func (c *cluster) dropInventory(ctx context.Context, id stackID) error {
	err := c.inventories().Delete(ctx, inventoryName(id), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("forgetting what was applied: %w", err)
	}
	return nil
}
