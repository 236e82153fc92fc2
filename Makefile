# k1s. "make help" lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-print-directory

# ---- what can be set ------------------------------------------------------------------------------

ARCH    ?= $(shell go env GOHOSTARCH)
VERSION ?= v0.1.0-dev
COMMIT  ?= $(shell git rev-parse -q --verify HEAD 2>/dev/null || true)
# zstd level of the payload, 1 to 22. 22 is what is released, and packs in two minutes on two cores with 3 GB of
# memory; 3 packs in three seconds and makes ./k1s half as large again.
LEVEL   ?= 22
K1S     ?= k1s
OUT     ?= out/$(ARCH)
# The cluster of "make up", and the port of this machine on which it answers.
CLUSTER ?= demo
PORT    ?= 8080

# ---- how everything is compiled -------------------------------------------------------------------

# One set of flags for building, testing and vetting, so that Kubernetes is compiled once.
# kustomize_disable_go_plugin_support: loading Go plugins would keep everything that is exported in the program.
TAGS := netgo,osusergo,sqlite_omit_load_extension,no_btrfs,no_aufs,no_zfs,no_devmapper,providerless,selinux,kustomize_disable_go_plugin_support
export CGO_ENABLED := 1
export GOFLAGS := -trimpath -buildvcs=false -tags=$(TAGS)

HOSTARCH := $(shell go env GOHOSTARCH)
TARGET := GOOS=linux GOARCH=$(ARCH)
CC_TARGET := gcc
ifneq ($(ARCH),$(HOSTARCH))
  TRIPLE_arm64 := aarch64-linux-gnu
  TRIPLE_arm   := arm-linux-gnueabihf
  TRIPLE_amd64 := x86_64-linux-gnu
  DEBARCH_arm64 := arm64
  DEBARCH_arm   := armhf
  DEBARCH_amd64 := amd64
  TRIPLE := $(TRIPLE_$(ARCH))
  CC_TARGET := $(TRIPLE)-gcc
  SYSROOT := $(OUT)/debian
  ROOT := $(SYSROOT)/root
  TARGET += GOARM=7 CC=$(CC_TARGET) PKG_CONFIG_SYSROOT_DIR=$(abspath $(ROOT)) \
	PKG_CONFIG_LIBDIR=$(abspath $(ROOT))/usr/lib/$(TRIPLE)/pkgconfig \
	CGO_LDFLAGS="-O2 -g -L$(abspath $(ROOT))/usr/lib/$(TRIPLE)"
  # Go's cache does not know what pkg-config said; of these flags it does, and they hold the directory. Build
  # IDs would as well, and with them the programs.
  NO_BUILD_ID := -buildid=
else
  ROOT := /
endif

module_version = $(shell go list -m -f '{{with .Replace}}{{.Version}}{{else}}{{.Version}}{{end}}' $(1))
KUBERNETES := $(call module_version,k8s.io/kubernetes)
CONTAINERD := $(call module_version,github.com/containerd/containerd/v2)
CNIPLUGINS := $(call module_version,github.com/containernetworking/plugins)
METRICS    := $(call module_version,sigs.k8s.io/metrics-server)
LOCALPATH  := $(call module_version,github.com/rancher/local-path-provisioner)

# The commit is known to the light program only: in the payload it would make every commit pack it anew.
# Build IDs stay in: they depend on the inputs alone, and by them go build knows what need not be linked again.
STRIP  := -s -w $(NO_BUILD_ID)
# GNU ld loses that resolvers of the C library's indirect functions are Thumb code where they are too far away to be
# called directly, as in a program of 78 MB of code: it ended before main on arm. gold does not.
ifeq ($(ARCH),arm)
  LINKER := -fuse-ld=gold
endif
STATIC := -linkmode=external '-extldflags=-static -Wl,--build-id=none $(LINKER)'
kube_version = -X $(1).gitVersion=$(2) -X $(1).gitMajor=$(word 1,$(subst ., ,$(2:v%=%))) \
	-X $(1).gitMinor=$(word 2,$(subst ., ,$(2:v%=%))) -X $(1).gitTreeState=clean -X $(1).gitCommit=$(2)
V := k1s.io/k1s/internal/version
LD_K1S  := $(STRIP) -X $(V).K1s=$(VERSION) -X $(V).Commit=$(COMMIT) -X $(V).Kubernetes=$(KUBERNETES)
LD_KUBE := $(STRIP) $(STATIC) -X $(V).K1s=$(VERSION) -X $(V).Kubernetes=$(KUBERNETES) \
	$(call kube_version,k8s.io/component-base/version,$(KUBERNETES)) $(call kube_version,k8s.io/client-go/pkg/version,$(KUBERNETES)) \
	-X github.com/containerd/containerd/v2/version.Version=$(CONTAINERD)
LD_PODS := $(STRIP) $(call kube_version,k8s.io/component-base/version,$(METRICS)) $(call kube_version,k8s.io/client-go/pkg/version,$(METRICS)) \
	-X k1s.io/k1s/out/_upstream/localpath.VERSION=$(LOCALPATH)
LD_CNI  := $(STRIP) -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$(CNIPLUGINS)
LD_SHIM := $(STRIP) -X github.com/containerd/containerd/v2/version.Version=$(CONTAINERD)

# Programs without a C library, see build/tiny.h.
TINY := -Os -static -nostdlib -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables \
	-fno-tree-loop-distribute-patterns -fno-pie -no-pie -Wall -Wextra -Wno-unused-function -s -Wl,--build-id=none -Wl,-z,noseparate-code
SHARED := -shared -fPIC -Os -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -Wall -Wextra -s -Wl,--build-id=none

STAGE   := $(OUT)/stage
PACK    := $(OUT)/bin/k1s-pack
PAYLOAD := $(OUT)/payload.bin
LIGHT   := $(OUT)/bin/k1s

# Upstream main packages that become importable, see cmd/k1s-pack/upstream.go.
P := github.com/containernetworking/plugins/plugins
UPSTREAM := ptp=$(P)/main/ptp bridge=$(P)/main/bridge loopback=$(P)/main/loopback hostlocal=$(P)/ipam/host-local \
	portmap=$(P)/meta/portmap bandwidth=$(P)/meta/bandwidth localpath=github.com/rancher/local-path-provisioner
CNI := bandwidth bridge host-local k1s-policy loopback portmap ptp

# Modules that are programs of their own in the list of components.
MAINS := k8s.io/kubernetes,github.com/containerd/containerd/v2,github.com/opencontainers/runc,github.com/k3s-io/kine,go.etcd.io/etcd/server/v3,$\
	github.com/flannel-io/flannel,github.com/coredns/coredns,sigs.k8s.io/metrics-server,github.com/rancher/local-path-provisioner,$\
	github.com/containernetworking/plugins,go

# Everything that does not import Kubernetes, containerd and the like, and the tests that need nothing.
LIGHT_PACKAGES = $(shell go list ./... | grep -Ev '/internal/applets(/|$$)|/cmd/k1s-(kube|pods)$$|/test/(script|system|images)(/|$$)')

.PHONY: build cli payload programs deps test-deps upstream notice test quick race lint lint-heavy cross script real system system-external faults conformance vm golden bench up down try clean dist dist-check reproducible sizes help

# ---- building -------------------------------------------------------------------------------------

build: payload cli ## build ./k1s, complete

cli: $(PACK) ## build ./k1s with the payload as it is: seconds, for work on the light program
	@test -e $(PAYLOAD) || { echo "error: there is no payload yet; run: make build" >&2; exit 1; }
	$(TARGET) go build -ldflags "$(LD_K1S)" -o $(LIGHT) ./cmd/k1s
	$(PACK) join -program $(LIGHT) -payload $(PAYLOAD) -o $(K1S)
	@echo "$(K1S): $$(stat -c %s $(K1S)) bytes"

payload: programs notice $(PACK) ## build what ./k1s carries; packs only what changed
	$(PACK) pack -dir $(STAGE) -cache $(OUT)/chunks -o $(PAYLOAD) -level $(LEVEL)

.PHONY: $(PACK)
$(PACK):
	@GOARCH=$(HOSTARCH) go build -o $@ ./cmd/k1s-pack

deps:
	@build/deps.sh $(ARCH)
	@$(if $(SYSROOT),build/sysroot.sh $(DEBARCH_$(ARCH)) $(SYSROOT))

test-deps: ## install the databases that system tests use
	@build/deps.sh $(ARCH) tests

upstream: $(PACK)
	@$(PACK) upstream -o out/_upstream $(UPSTREAM)

programs: deps upstream
	@mkdir -p $(STAGE)/cni
	$(TARGET) go build -ldflags "$(LD_KUBE)" -o $(STAGE)/k1s-kube ./cmd/k1s-kube
	$(TARGET) go build -tags $(TAGS),k1s_upstream -ldflags "$(LD_PODS)" -o $(STAGE)/k1s-pods ./cmd/k1s-pods
	$(TARGET) go build -tags $(TAGS),k1s_upstream -ldflags "$(LD_CNI)" -o $(STAGE)/k1s-cni ./cmd/k1s-cni
	$(TARGET) go build -tags $(TAGS),no_grpc -ldflags "$(LD_SHIM)" -o $(STAGE)/containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	$(TARGET) go build -tags netgo,osusergo,seccomp -ldflags "$(STRIP) $(STATIC)" -o $(STAGE)/runc github.com/opencontainers/runc
	$(CC_TARGET) $(TINY) -o $(STAGE)/pause build/pause.c
	$(CC_TARGET) $(TINY) -o $(STAGE)/nft build/launch.c
	@build/nft.sh $(ROOT) $(STAGE)/nft.d > $(OUT)/nft-files
	$(CC_TARGET) $(SHARED) -o $(STAGE)/nft.d/protocols.so build/protocols.c
	@for p in $(CNI); do ln -sfn ../k1s-cni $(STAGE)/cni/$$p; done

notice: programs $(PACK) ## write NOTICE, components.json and sbom.spdx.json of everything carried
	@build/debian.sh $(if $(SYSROOT),$(SYSROOT),native $$(cat $(OUT)/nft-files)) > $(OUT)/debian-packages
	$(TARGET) go build -ldflags "$(LD_K1S)" -o $(LIGHT) ./cmd/k1s
	@$(PACK) notice -o $(STAGE) -version $(VERSION) -debian $(OUT)/debian-packages -main $(MAINS) \
		-copied k1s-pods=github.com/rancher/local-path-provisioner -copied k1s-cni=github.com/containernetworking/plugins $(LIGHT) \
		$(STAGE)/k1s-kube $(STAGE)/k1s-pods $(STAGE)/k1s-cni $(STAGE)/containerd-shim-runc-v2 $(STAGE)/runc

dist: ## build dist/k1s-linux-ARCH: make dist ARCH=arm64
	@mkdir -p dist
	@$(MAKE) build ARCH=$(ARCH) K1S=dist/k1s-linux-$(ARCH)

DIST_FLAGS ?=
dist-check: ## check dist/k1s-linux-ARCH: its size, every program in it, and that they run (emulated where they must be)
	@$(if $(SYSROOT),build/deps.sh $(ARCH) emulator)
	GOARCH=$(HOSTARCH) go run ./test/dist -arch $(ARCH) $(DIST_FLAGS)

# Not part of "make test": the second build takes as long as a first one. LEVEL is 3 unless told: make reproducible LEVEL=22
reproducible: LEVEL = 3
reproducible: ## build this commit twice, the second time from nothing in a clone elsewhere, and compare
	@build/reproducible.sh $(ARCH) $(LEVEL)

sizes: $(PACK) ## print what ./k1s carries: bytes unpacked and packed
	@$(PACK) list $(K1S)

clean: ## remove everything that was built; Go's cache stays
	rm -rf out dist $(K1S)

# ---- testing --------------------------------------------------------------------------------------

# What the build needs comes first: tests that need it would be left out otherwise.
test: ## everything: quick, lint, cross, script, system, try; light first
	$(MAKE) deps
	$(MAKE) quick
	$(MAKE) lint
	$(MAKE) cross
	$(MAKE) script
	$(MAKE) build
	$(MAKE) lint-heavy
	$(MAKE) real
	$(MAKE) system
	$(MAKE) try

quick: ## unit and golden tests, without the heavy packages
	go test $(LIGHT_PACKAGES)

race: ## the same with the race detector
	go test -race $(LIGHT_PACKAGES)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
lint: ## gofmt, go vet and staticcheck of the light packages
	@bad=$$(gofmt -l cmd internal $(wildcard test examples)); [ -z "$$bad" ] || { echo "error: not formatted: $$bad" >&2; exit 1; }
	go vet $(LIGHT_PACKAGES)
	go vet -tags $(TAGS),system,faults ./test/...
	cd test/registry && CGO_ENABLED=0 GOFLAGS=-trimpath go vet .
	go run $(STATICCHECK) $(LIGHT_PACKAGES)

# In two halves: the local-path provisioner imports logrus by its former name, Sirupsen, which Go refuses
# beside the present one.
lint-heavy: upstream ## go vet and unit tests of the packages that import Kubernetes
	@set -e; pods="./internal/applets/localpath ./internal/applets/coredns ./internal/applets/metricsserver ./cmd/k1s-pods"; \
	kube=$$(go list ./internal/applets/... ./cmd/k1s-kube ./cmd/k1s-cni | grep -vE '/applets/(localpath|coredns|metricsserver)$$'); \
	for half in "$$pods" "$$kube"; do \
		go vet -tags $(TAGS),k1s_upstream $$half; \
		go test -tags $(TAGS),k1s_upstream $$half; \
	done

cross: ## the light packages for Windows, arm64 and arm
	CGO_ENABLED=0 GOOS=windows go vet $(LIGHT_PACKAGES)
	CGO_ENABLED=0 GOARCH=arm64 go vet $(LIGHT_PACKAGES)
	CGO_ENABLED=0 GOARCH=arm go vet $(LIGHT_PACKAGES)

script: ## the command line as users type it
	go test ./test/script/...

system: test-deps ## real nodes and clusters, as root, with ./k1s
	@test -x $(K1S) || $(MAKE) build
	K1S_TEST_ROOT=1 go test -json -tags $(TAGS),system -count=1 -timeout 60m ./test/system/... | go run ./test/failures

# Not part of "make test": it takes twenty minutes.
FAULTS ?= .
faults: ## three servers and an agent under load, and everything that can happen to them; restores: make faults FAULTS='disk|partition'
	@test -x $(K1S) || $(MAKE) build
	K1S_TEST_ROOT=1 go test -tags $(TAGS),system,faults -count=1 -timeout 60m -v -run '^(TestNoWriteIsLost|TestServersAreRestored|TestAClusterGoesOverToAnotherK1s)$$/$(FAULTS)' ./test/system

system-external: test-deps ## three servers that move to a PostgreSQL, which goes away for a minute; one test, some minutes, as root
	K1S_TEST_ROOT=1 K1S_TEST_EXTERNAL=1 go test -tags $(TAGS),system -count=1 -timeout 20m -run TestSeveralServersOnADatabaseOfOthers ./test/system

STAGED := $(abspath $(OUT))/stage
real: ## tests of packages with real parts, as root: a kube-apiserver, a containerd, CNI plugins, namespaces
	@test -x $(STAGED)/k1s-kube || $(MAKE) build
	@ln -sfn $(STAGED)/k1s-kube $(OUT)/bin/containerd
	K1S_TEST_ROOT=1 go test -count=1 ./internal/cluster/netns ./internal/platform ./internal/applets/egress ./internal/runner ./internal/durable
	K1S_TEST_ROOT=1 go test -count=1 -run 'Aside|Closed' ./internal/daemon
	K1S_TEST_ROOT=1 go test -count=1 -run FullDisk ./internal/applets/kine
	unshare --net sh -c 'ip link set lo up; K1S_TEST_KUBE=$(STAGED)/k1s-kube go test -count=1 -p 1 ./internal/applets/addonmanager ./internal/applets/apiserver'
	PATH=$(STAGED):$$PATH K1S_TEST_CNI=$(STAGED)/cni go test -count=1 ./internal/applets/flannel
	PATH=$(STAGED):$$PATH K1S_TEST_ROOT=1 go test -count=1 ./internal/applets/networkpolicy ./internal/applets/kubeproxy
	PATH=$(STAGED):$$PATH K1S_TEST_CONTAINERD=$(abspath $(OUT))/bin/containerd go test -count=1 ./internal/applets/images

# Not part of "make test": the test binary is compiled for ten minutes, and the tests take longer. FOCUS and SKIP are regular expressions for names of
# tests; they go by the environment, because names have quotes. A $ in them is written $$.
FOCUS ?=
SKIP  ?=
NODES ?= 2
PROCS ?= 2
conformance: export FOCUS := $(FOCUS)
conformance: export SKIP := $(SKIP)
conformance: ## upstream's own tests against ./k1s; unless told only those of NetworkPolicy: make conformance FOCUS='\[Conformance\]' SKIP=Slow NODES=3
	@test -x $(K1S) || $(MAKE) build
	@mkdir -p $(OUT)/bin
	go build -o $(OUT)/bin/conformance ./test/conformance
	$(OUT)/bin/conformance -program $(K1S) -out $(OUT)/conformance -nodes $(NODES) -procs $(PROCS) $${FOCUS:+-focus "$$FOCUS"} $${SKIP:+-skip "$$SKIP"} $(CONFORMANCE_FLAGS)

# Not part of "make test": with an emulated processor it takes half an hour.
VM_CGROUP ?= v2
vm: ## show ./k1s on a stock machine (systemd, cgroup v2, Debian's kernel) in a virtual one: make vm VM_CGROUP=v1
	@test -x $(K1S) || $(MAKE) build
	go run ./test/vm -program $(K1S) -arch $(ARCH) -cgroup $(VM_CGROUP) $(VM_FLAGS)

golden: ## rewrite the golden files; read the diff before committing it
	go test $$(grep -rl --include=*_test.go 'flag.Bool("update"' internal cmd | xargs -n1 dirname | sort -u | sed 's,^,./,') -update

bench: ## measure ./k1s against its budgets
	@test -x $(K1S) || $(MAKE) build
	go run ./test/bench

# ---- trying ---------------------------------------------------------------------------------------

up: build ## build, create a cluster, deploy examples/ and show it answering: make up CLUSTER=demo PORT=8080
	@CLUSTER=$(CLUSTER) PORT=$(PORT) build/up.sh $(dir $(K1S))$(notdir $(K1S))

down: ## delete that cluster
	$(dir $(K1S))$(notdir $(K1S)) cluster delete $(CLUSTER) --yes

try: ## make up and make down, beside whatever is here; as root
	@test -x $(K1S) || $(MAKE) build
	@build/try.sh $(K1S)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
