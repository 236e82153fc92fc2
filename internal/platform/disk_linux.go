package platform

import (
	"fmt"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/health"
)

// FreeBytes is what can be written to the file system of dir.
func FreeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("looking for space below %s: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// fsTypes are the file systems that decideDisk has an opinion about, by magic number.
var fsTypes = map[int64]string{
	unix.NFS_SUPER_MAGIC: "nfs", 0xff534d42: "cifs", 0xfe534d42: "smb2", unix.V9FS_MAGIC: "9p", 0x00c36400: "ceph",
	0x65735546: "fuse", unix.MSDOS_SUPER_MAGIC: "vfat", 0x2011bab0: "exfat", 0x5346544e: "ntfs", 0x7366746e: "ntfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs",
}

// DiskProblems is what is wrong with the file system that a data directory is on, or is going to be: too little space, too
// few inodes, or a kind that does not suit. It reads and writes no file, so it may be asked again and again.
func DiskProblems(data string) []health.Problem {
	dir, err := existing(data)
	if err != nil {
		return one(health.New(health.DataDirReadonly, "the data directory %s cannot be used: %v", data, err))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return failed("the space at "+dir, err)
	}
	name, ok := fsTypes[int64(uint32(st.Type))]
	if !ok {
		name = fmt.Sprintf("%#x", st.Type)
	}
	return decideDisk(diskFacts{
		Dir: data, FreeBytes: st.Bavail * uint64(st.Bsize), Inodes: st.Files, FreeInodes: st.Ffree, Type: name,
	})
}
