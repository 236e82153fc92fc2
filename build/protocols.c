// protocols gives nft the names of protocols. The C library takes them from /etc/protocols, which machines without Debian's netbase, or what
// is like it elsewhere, do not have. There nft takes no "tcp", and prints a 6: kube-proxy finds elements in its maps then that it has not
// put there, and deletes them, so every second look at all rules, and every second start, left the node without services. It is loaded before the C library
// (ld.so --preload), so the names are the same on every machine. Numbers: https://www.iana.org/assignments/protocol-numbers; names: netbase's.

struct protoent { // as <netdb.h> has it
	char *p_name;
	char **p_aliases;
	int p_proto;
};

static char *none[] = { 0 };

static struct protoent all[] = {
	{ "ip", none, 0 }, { "icmp", none, 1 }, { "igmp", none, 2 }, { "ipencap", none, 4 }, { "tcp", none, 6 },
	{ "egp", none, 8 }, { "igp", none, 9 }, { "udp", none, 17 }, { "rdp", none, 27 }, { "dccp", none, 33 },
	{ "ipv6", none, 41 }, { "ipv6-route", none, 43 }, { "ipv6-frag", none, 44 }, { "rsvp", none, 46 }, { "gre", none, 47 },
	{ "esp", none, 50 }, { "ah", none, 51 }, { "skip", none, 57 }, { "ipv6-icmp", none, 58 }, { "ipv6-nonxt", none, 59 },
	{ "ipv6-opts", none, 60 }, { "eigrp", none, 88 }, { "ospf", none, 89 }, { "ipip", none, 94 }, { "etherip", none, 97 },
	{ "encap", none, 98 }, { "pim", none, 103 }, { "ipcomp", none, 108 }, { "vrrp", none, 112 }, { "l2tp", none, 115 },
	{ "isis", none, 124 }, { "sctp", none, 132 }, { "fc", none, 133 }, { "mobility-header", none, 135 }, { "udplite", none, 136 },
	{ "mpls-in-ip", none, 137 }, { "manet", none, 138 }, { "hip", none, 139 }, { "shim6", none, 140 }, { "wesp", none, 141 }, { "rohc", none, 142 },
};

enum { COUNT = sizeof all / sizeof all[0] };

static int lower(int c) { return c >= 'A' && c <= 'Z' ? c + 'a' - 'A' : c; }

static int same(const char *a, const char *b)
{
	while (*a && lower(*a) == lower(*b))
		a++, b++;
	return lower(*a) == lower(*b);
}

struct protoent *getprotobyname(const char *name)
{
	for (int i = 0; i < COUNT; i++)
		if (same(all[i].p_name, name))
			return &all[i];
	return 0;
}

struct protoent *getprotobynumber(int number)
{
	for (int i = 0; i < COUNT; i++)
		if (all[i].p_proto == number)
			return &all[i];
	return 0;
}
