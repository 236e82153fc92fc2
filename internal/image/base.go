package image

import (
	"io/fs"
)

// BaseName is the image that sandboxes and packaged pods run from. It is never pulled: every node makes
// it from its payload.
const BaseName = "k1s.io/base:1"

// Base describes the base image: the pause program and the few files programs expect below /. Packaged
// pods mount their program over /k1s-pods. pause is the name of the program in payload; arch is a GOARCH.
//
// Whoever changes the content changes the number in BaseName as well, so that running pods keep theirs.
func Base(payload fs.FS, pause, arch string) Spec {
	return Spec{
		Names: []string{BaseName},
		Arch:  arch,
		Config: Config{
			Entrypoint: []string{"/pause"},
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			WorkingDir: "/",
		},
		Files: []File{
			FromFS("/pause", 0o755, payload, pause),
			Text("/etc/passwd", "root:x:0:0:root:/:/pause\nnobody:x:65534:65534:nobody:/:/pause\n"),
			Text("/etc/group", "root:x:0:\nnobody:x:65534:\n"),
			// Names in /etc/hosts, which the kubelet writes, win over DNS.
			Text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
			Dir("/tmp", 0o777|fs.ModeSticky),
			// A file can be bind-mounted only over a file that is there.
			{Path: "/k1s-pods", Mode: 0o755},
		},
	}
}
