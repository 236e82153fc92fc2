package etcdcare

import "k1s.io/k1s/internal/errs"

// The daemon starts the program that has etcd's libraries and S3 (applet etcd-care), writes a Job as one line to its standard
// input and reads one Answer from its standard output. The end of its input ends it, so it ends with the daemon.

// Do is what a Job asks for.
type Do string

// What can be asked for.
const (
	Save    Do = "save"    // take a snapshot, check it, copy it to S3
	List    Do = "list"    // what there is, checked as far as that can be done in place
	Remove  Do = "remove"  // those named by Where
	Look    Do = "look"    // at the one named by Where: what it is
	Stage   Do = "stage"   // make a data directory from the one named by Where
	Advance Do = "advance" // bring a staged data directory past the revision of the old one
)

// Job for the applet.
type Job struct {
	Do Do `json:"do"`
	// Dir is where snapshots are on this machine, S3 where else; its Bucket is "" for nowhere.
	Dir string `json:"dir,omitempty"`
	S3  S3     `json:"s3,omitzero"`
	// S3Only removes the file here when its copy is in S3.
	S3Only bool `json:"s3Only,omitempty"`
	// Snapshot is what is known already of the one to be saved.
	Snapshot Snapshot `json:"snapshot,omitzero"`
	// Archives are the data directories put aside, for List.
	Archives []string `json:"archives,omitempty"`
	Etcd     Etcd     `json:"etcd,omitzero"`
	Where    []string `json:"where,omitempty"`
	// Staged is the data directory to make, Old the one it is to replace.
	Staged string `json:"staged,omitempty"`
	Old    string `json:"old,omitempty"`
	// Member is the name and the URL of the only member of a staged data directory.
	Member string `json:"member,omitempty"`
	Peer   string `json:"peer,omitempty"`
}

// Etcd is how the member is reached.
type Etcd struct {
	Endpoint string `json:"endpoint"`
	CAFile   string `json:"caFile"`
	CertFile string `json:"certFile"`
	KeyFile  string `json:"keyFile"`
}

// S3 is a bucket and what opens it. It may hold a password and goes through a pipe only.
type S3 struct {
	Endpoint  string `json:"endpoint,omitempty"` // HOST[:PORT], or with https:// or http:// before it
	Bucket    string `json:"bucket,omitempty"`
	Folder    string `json:"folder,omitempty"`
	Region    string `json:"region,omitempty"`
	CAFile    string `json:"caFile,omitempty"`
	PathStyle bool   `json:"pathStyle,omitempty"`
	// CredentialsFile is a file of the kind ~/.aws/credentials. Without it and without AccessKey the environment counts, AWS_….
	CredentialsFile string `json:"credentialsFile,omitempty"`
	AccessKey       string `json:"accessKey,omitempty"`
	SecretKey       string `json:"secretKey,omitempty"`
	SessionToken    string `json:"sessionToken,omitempty"`
}

// Answer to a Job.
type Answer struct {
	// Error is what went wrong; something may have been done before.
	Error *errs.Wire `json:"error,omitempty"`
	// Entries are what was saved, listed or removed, or what Look and Stage have found.
	Entries []Entry `json:"entries,omitempty"`
	// Warnings are what did not go well and is no reason to fail, e.g. that S3 does not answer while the directory is listed.
	Warnings []string `json:"warnings,omitempty"`
	// Revision is that of the staged data directory.
	Revision int64 `json:"revision,omitempty"`
}
