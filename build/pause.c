// pause holds a pod's namespaces open: it does nothing but wait, collect the orphans that the kernel
// hands to the first process of a process namespace, and leave when asked to.
#include "tiny.h"

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, WNOHANG = 1, SET_SIZE = 8 };

void start(long *stack)
{
	(void)stack;
	// Waited for instead of handled: a blocked signal reaches even the first process of a namespace,
	// for which the kernel drops signals that have no handler, and none is lost between two waits.
	unsigned long long set = 1ull << (SIGINT - 1) | 1ull << (SIGTERM - 1) | 1ull << (SIGCHLD - 1);
	sys4(SYS_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, SET_SIZE);
	for (;;) {
		long sig = sys4(SYS_rt_sigtimedwait, (long)&set, 0, 0, SET_SIZE);
		if (sig == SIGINT || sig == SIGTERM)
			quit(0);
		while (sys4(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
			;
	}
}
