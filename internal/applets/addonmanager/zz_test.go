package addonmanager
import ("testing";"k1s.io/k1s/internal/addons";"fmt")
func TestZZ(t *testing.T){ f,err:=addons.Render(addons.Node{ClusterDNS: "10.43.0.10", PodsProgram: "/p", PayloadID: "1", StorageDir: "/s"}, nil); for k:=range f {fmt.Println(k)}; fmt.Println(err)}
