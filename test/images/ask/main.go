// Command ask is wget and nslookup of the busybox image, as far as tests and examples use them: busybox
// linked statically with the GNU C library crashes as soon as it looks up a name, or even a service, because
// that loads libraries which are not there. In a shell of busybox they are called by their paths, /bin/wget:
// a bare name is the applet of the same name.
//
//	wget [-q] [-T SECONDS] [-O FILE|-] [--post-data TEXT] URL
//	nslookup NAME
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

func main() {
	name := path.Base(os.Args[0])
	run := map[string]func([]string) error{"wget": wget, "nslookup": nslookup}[name]
	if run == nil {
		fmt.Fprintln(os.Stderr, "this program is called wget or nslookup")
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func wget(args []string) error {
	flags := pflag.NewFlagSet("wget", pflag.ContinueOnError)
	flags.BoolP("quiet", "q", false, "say nothing, as always")
	output := flags.StringP("output-document", "O", "", "file to write to, - for standard output")
	limit := flags.IntP("timeout", "T", 900, "seconds it may take")
	post := flags.String("post-data", "", "body of a POST")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("one URL, got %q", flags.Args())
	}
	url := flags.Arg(0)
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*limit)*time.Second)
	defer cancel()
	method, body := http.MethodGet, io.Reader(nil)
	if flags.Changed("post-data") {
		method, body = http.MethodPost, strings.NewReader(*post)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("server returned error: %s %s", resp.Proto, resp.Status)
	}
	return save(resp.Body, cmp.Or(*output, path.Base(req.URL.Path)))
}

func save(from io.Reader, name string) error {
	if name == "-" {
		_, err := io.Copy(os.Stdout, from)
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

func nslookup(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("one name, got %q", args)
	}
	resolver := net.Resolver{PreferGo: true}
	addresses, err := resolver.LookupHost(context.Background(), args[0])
	var no *net.DNSError
	if errors.As(err, &no) && no.IsNotFound {
		return fmt.Errorf("can't find %s: NXDOMAIN", args[0])
	}
	if err != nil {
		return err
	}
	for _, a := range addresses {
		fmt.Printf("Name:\t%s\nAddress: %s\n", args[0], a)
	}
	return nil
}
