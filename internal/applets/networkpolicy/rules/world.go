// Package rules turns what a cluster asks for in NetworkPolicies (networking.k8s.io/v1) into nftables chains,
// sets and their elements for one node, and says what has to change from one state to the next. It is pure:
// no API server, no kernel, no clock; package networkpolicy watches the one and writes to the other.
//
// The shape of the table is made for small changes. A pod is elements of sets only; which policies select a
// pod is an element of a verdict map for each (slots, see build.go), so there is no chain for a pod. Peers are sets shared by all
// policies with the same selector. A policy is one chain for each direction.
package rules

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Key names a pod or policy.
type Key = types.NamespacedName

// Port is a port of a pod that has a name. Numbered ports need not be declared and are not kept.
type Port struct {
	Name     string
	Protocol uint8 // IP protocol number
	Number   uint16
}

// Pod is what rules need to know of one. Its labels may be shared and are never changed.
type Pod struct {
	Key    Key
	UID    types.UID
	Labels map[string]string
	// IPs are its own addresses, none before it has some.
	IPs   []netip.Addr
	Ports []Port
	// Local tells that it runs on this node, where its packets are judged.
	Local bool
}

// Equal tells that nothing the rules depend on differs.
func (p Pod) Equal(o Pod) bool {
	return p.Key == o.Key && p.UID == o.UID && p.Local == o.Local && maps.Equal(p.Labels, o.Labels) && slices.Equal(p.IPs, o.IPs) && slices.Equal(p.Ports, o.Ports)
}

// Table is the table of family inet that is ours.
const Table = "k1s-netpol"

// World is everything a state of the table depends on.
type World struct {
	Pods       []Pod
	Namespaces map[string]map[string]string // labels by name
	Policies   []*networkingv1.NetworkPolicy
}

// protocols by name, with the numbers of IANA: they do not depend on a file of the machine.
var protocols = map[corev1.Protocol]uint8{corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}

// Protocol is the IP protocol number; TCP where none is named, 0 for one that policies do not know.
func Protocol(p *corev1.Protocol) uint8 {
	if p == nil || *p == "" {
		return protocols[corev1.ProtocolTCP]
	}
	return protocols[*p]
}

// mirror is where the API's image of a static pod has the UID that the kubelet and the container runtime know.
const mirror = corev1.MirrorPodAnnotationKey

// PodOf takes from a Pod what rules need. node is the name of the node the rules are for. ok is false for pods that have
// no addresses of their own: those in the node's network, and those that have ended, whose address may be another's by now.
func PodOf(p *corev1.Pod, node string) (out Pod, ok bool) {
	out = Pod{
		Key: Key{Namespace: p.Namespace, Name: p.Name}, UID: p.UID, Labels: p.Labels, Local: p.Spec.NodeName == node,
	}
	if uid := p.Annotations[mirror]; uid != "" {
		out.UID = types.UID(uid)
	}
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return out, false
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.IPs = append(out.IPs, a.Unmap())
		}
	}
	containers := p.Spec.Containers
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways { // it runs beside the others
			containers = append(slices.Clip(containers), c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.Name != "" && port.ContainerPort > 0 && port.ContainerPort < 1<<16 {
				out.Ports = append(out.Ports, Port{port.Name, Protocol(&port.Protocol), uint16(port.ContainerPort)})
			}
		}
	}
	return out, true
}

func number(n uint8) string { return strconv.Itoa(int(n)) }

func number16(n uint16) string { return strconv.Itoa(int(n)) }

func labelsOf(p Pod) labels.Set { return p.Labels }
