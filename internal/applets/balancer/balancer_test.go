package balancer

import (
	"slices"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// Whoever may write endpoints into the namespace default could name servers otherwise.
func TestServersAreLearnedFromTheObjectOfTheAPIServersOnly(t *testing.T) {
	port := int32(6443)
	ours := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}}, {Addresses: []string{"10.0.0.1"}}}, Ports: []discoveryv1.EndpointPort{{Port: &port}},
	}
	client := fake.NewClientset(ours)
	asked := make(chan string, 1)
	client.PrependReactor("list", "endpointslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case asked <- a.(clienttesting.ListAction).GetListRestrictions().Fields.String():
		default: // again
		}
		return false, nil, nil
	})
	learned := make(chan []string, 1)
	factory, err := learn(client, func(servers []string) {
		select {
		case learned <- servers:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	factory.Start(stop)
	defer factory.Shutdown()
	defer close(stop)
	if got := <-learned; !slices.Equal(got, []string{"10.0.0.1:6443", "10.0.0.2:6443"}) {
		t.Errorf("learned %v", got)
	}
	if got := <-asked; got != "metadata.name=kubernetes" {
		t.Errorf("asked for those with %q", got)
	}
}
