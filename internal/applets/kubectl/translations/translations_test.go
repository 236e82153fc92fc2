package translations

import "testing"

func TestOnlyKubectlIsTranslated(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want bool
	}{
		{[]string{"/payload/k1s-kube", "group", "control-plane.json"}, false},
		{[]string{"/payload/k1s-kube", "containerd", "--config=kubectl"}, false},
		{[]string{"/payload/k1s-kube"}, false},
		{[]string{"/payload/k1s-kube", "kubectl", "get", "pods"}, true},
		{[]string{"kubectl", "get", "pods"}, true},
		{[]string{`kubectl.exe`}, true},
		{nil, true},
	} {
		if got := kubectl(c.argv); got != c.want {
			t.Errorf("%q: %v, want %v", c.argv, got, c.want)
		}
	}
}
