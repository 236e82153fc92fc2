package platform

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/component"
)

// DetectFacts asks the machine. What is merely missing (no address, no cgroups) is left empty for the
// checks to report; an error means that the question itself failed or the context ended.
func DetectFacts(ctx context.Context, in FactsInput) (component.Facts, error) {
	f := component.Facts{NodeName: in.NodeName, CgroupRoot: in.CgroupRoot, CPUs: runtime.NumCPU()}
	if f.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return f, fmt.Errorf("detecting the node name: %w", err)
		}
		f.NodeName = NodeName(host)
	}
	if f.CgroupRoot == "" {
		f.CgroupRoot = defaultCgroupRoot
	}

	var asked netip.Addr
	if in.NodeIP != "" {
		var err error
		if asked, err = netip.ParseAddr(in.NodeIP); err != nil {
			return f, fmt.Errorf("reading the node's address: %w", err)
		}
	}
	links, err := readInterfaces()
	if err != nil {
		return f, fmt.Errorf("detecting the node's address: %w", err)
	}
	routes, err := readRoutes()
	if err != nil {
		return f, fmt.Errorf("detecting the node's address: %w", err)
	}
	f.NodeIP, f.NodeInterface = chooseAddress(asked, links, routes)

	cg, err := DetectCgroups()
	if err == nil {
		f.CgroupVersion = cg.Version
	}
	if f.MemoryBytes, f.MemoryLimit, err = readMemory(cg, f.CgroupRoot); err != nil {
		return f, fmt.Errorf("detecting the size of memory: %w", err)
	}
	f.Systemd = bootedBySystemd()
	f.SysResource = hasCapability(unix.CAP_SYS_RESOURCE)
	if f.OOMScore, err = OOMScore(); err != nil {
		return f, err
	}
	f.InitialNetNS = initialNetNS()
	f.AppArmor = strings.TrimSpace(readString("/sys/module/apparmor/parameters/enabled")) == "Y"
	f.OverlayFS = overlayWorks(in.DataDir) == nil
	f.Resolver = chooseResolver(readString)
	return f, ctx.Err()
}

// readString is a file's content, "" if it cannot be read: for kernel files whose absence is an answer.
func readString(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

func readInterfaces() ([]netInterface, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []netInterface
	for _, i := range ifs {
		l := netInterface{Name: i.Name, Up: i.Flags&net.FlagUp != 0, Loopback: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // gone in between
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.Addrs = append(l.Addrs, p)
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// readRoutes reads the main table. /proc is enough here: no attribute that only netlink has is needed.
func readRoutes() ([]route, error) {
	b, err := os.ReadFile("/proc/self/net/route")
	if err != nil {
		return nil, err
	}
	return parseRoutes(string(b)), nil
}

// parseRoutes reads /proc/net/route: addresses are hexadecimal in the machine's byte order.
func parseRoutes(table string) []route {
	var out []route
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		dst, err1 := hexAddr(f[1])
		via, err2 := hexAddr(f[2])
		mask, err3 := hexAddr(f[7])
		flags, err4 := strconv.ParseUint(f[3], 16, 32)
		metric, err5 := strconv.ParseUint(f[6], 10, 32)
		if errors.Join(err1, err2, err3, err4, err5) != nil || flags&unix.RTF_UP == 0 {
			continue // the heading
		}
		m4 := mask.As4()
		ones, _ := net.IPMask(m4[:]).Size()
		r := route{Dst: netip.PrefixFrom(dst, ones), Dev: f[0], Metric: uint32(metric)}
		if flags&unix.RTF_GATEWAY != 0 {
			r.Via = via
		}
		out = append(out, r)
	}
	return out
}

func hexAddr(s string) (netip.Addr, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 {
		return netip.Addr{}, fmt.Errorf("%q is no address", s)
	}
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], binary.BigEndian.Uint32(b))
	return netip.AddrFrom4(a), nil
}

// readMemory is the machine's memory, or the lowest limit of the cgroups that we and what runs below root are in,
// with the file that sets it. root need not exist yet. cg may be nil.
func readMemory(cg *Cgroups, root string) (bytes uint64, file string, err error) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, "", err
	}
	total := parseMeminfo(string(info), "MemTotal")
	if total == 0 {
		return 0, "", errors.New("/proc/meminfo does not say it")
	}
	bytes, file = lowestLimit(total, memoryCgroups(cg, root))
	return bytes, file, nil
}

// lowestLimit is total, or the lowest limit below it and the file that sets it.
func lowestLimit(total uint64, cgroups iter.Seq2[string, int]) (lowest uint64, file string) {
	lowest = total
	for dir, version := range cgroups {
		if limit, ok := memoryLimit(dir, version); ok && limit < lowest {
			lowest, file = limit, path.Join(dir, memoryMax[version])
		}
	}
	return lowest, file
}

// AvailableMemory is how much memory can be had now without taking any from others: of the machine, and below
// the limits of the cgroups we are in. 0 means that it is not known.
func AvailableMemory() uint64 {
	memory := parseMeminfo(readString("/proc/meminfo"), "MemAvailable")
	if memory == 0 {
		return 0
	}
	cg, err := DetectCgroups()
	if err != nil {
		return memory
	}
	for dir, version := range memoryCgroups(cg) {
		if limit, ok := memoryLimit(dir, version); ok {
			memory = min(memory, memoryLeft(limit, readString(path.Join(dir, memoryUsage[version])), readString(path.Join(dir, "memory.stat"))))
		}
	}
	return memory
}

// memoryCgroups yields the directories of the cgroups that may limit the memory of ours and of others, with the
// version of their files. cg may be nil.
func memoryCgroups(cg *Cgroups, others ...string) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		if cg == nil {
			return
		}
		controller := "memory"
		if cg.Version == 2 {
			controller = ""
		}
		mount, ok := cg.Hierarchies[controller]
		if !ok {
			return
		}
		for _, at := range append([]string{cg.Own[controller]}, others...) {
			for at = path.Clean("/" + at); ; at = path.Dir(at) {
				if !yield(path.Join(mount, at), cg.Version) {
					return
				}
				if at == "/" {
					break
				}
			}
		}
	}
}

// Files of a memory cgroup, by version.
var (
	memoryMax   = map[int]string{1: "memory.limit_in_bytes", 2: "memory.max"}
	memoryUsage = map[int]string{1: "memory.usage_in_bytes", 2: "memory.current"}
)

// memoryLimit reads the limit of a cgroup; "max", and the huge number of version 1, are none or do no harm.
func memoryLimit(dir string, version int) (uint64, bool) {
	n, err := strconv.ParseUint(strings.TrimSpace(readString(path.Join(dir, memoryMax[version]))), 10, 64)
	return n, err == nil
}

// memoryLeft is what a cgroup may still use: usage and stat are its files. Pages of files count as free: they
// are dropped when memory is needed.
func memoryLeft(limit uint64, usage, stat string) uint64 {
	used, err := strconv.ParseUint(strings.TrimSpace(usage), 10, 64)
	if err != nil {
		return limit
	}
	files := map[string]uint64{}
	for line := range strings.Lines(stat) {
		if f := strings.Fields(line); len(f) == 2 {
			files[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	pages := files["inactive_file"] + files["active_file"] // version 2
	if total, ok := files["total_inactive_file"]; ok {     // version 1, where usage is that of all below
		pages = total + files["total_active_file"]
	}
	used -= min(used, pages)
	return limit - min(limit, used)
}

// parseMeminfo finds an entry of /proc/meminfo, in bytes.
func parseMeminfo(meminfo, name string) uint64 {
	for line := range strings.Lines(meminfo) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name+":" {
			kb, err := strconv.ParseUint(f[1], 10, 64)
			if err == nil {
				return kb * 1024
			}
		}
	}
	return 0
}

// bootedBySystemd is what sd_booted(3) says, and not only a directory somebody left in an image.
func bootedBySystemd() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir() && strings.TrimSpace(readString("/proc/1/comm")) == "systemd"
}

func hasCapability(c uint) bool {
	for line := range strings.Lines(readString("/proc/self/status")) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && mask&(1<<c) != 0
		}
	}
	return false
}

// initialNetNS looks for a setting that the kernel shows in the first network namespace only. Comparing
// with process 1 would be no better: in a container that is not the machine's init, and some machines do
// not let root look at it.
func initialNetNS() bool {
	_, err := os.Stat("/proc/sys/net/core/netdev_max_backlog")
	return err == nil
}

// overlayWorks mounts an overlay below dir, in a mount namespace of its own that ends with the thread, so
// nobody else ever sees it. Looking at /proc/filesystems would miss a module that is loaded on demand, and
// file systems that cannot be an upper layer.
func overlayWorks(dir string) error {
	base, err := existing(dir)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(base, ".k1s-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o700); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread has another mount namespace and has to die with this goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("making a mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("making mounts private: %w", err)
			}
			// Volatile (Linux 5.10), or unmounting waits until the whole file system below is on disk.
			opts := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work,volatile", tmp)
			merged := filepath.Join(tmp, "merged")
			if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
				return fmt.Errorf("mounting an overlay below %s: %w", base, err)
			}
			// Some combinations mount and then refuse to write.
			writeErr := os.WriteFile(filepath.Join(merged, "f"), []byte("x"), 0o600)
			return errors.Join(writeErr, unix.Unmount(merged, unix.MNT_DETACH))
		}()
	}()
	return <-done
}

// existing is dir, or the nearest of its parents that exists.
func existing(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("no data directory is given")
	}
	for {
		st, err := os.Stat(dir)
		switch {
		case err == nil && st.IsDir():
			return dir, nil
		case err == nil:
			return "", fmt.Errorf("%s is not a directory", dir)
		case !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir):
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}
