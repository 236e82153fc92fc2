// launch starts the program of its own name that lies, with the libraries and the dynamic loader it was
// linked for, in a directory beside it: DIR/nft runs DIR/nft.d/ld.so --preload DIR/nft.d/protocols.so
// --library-path DIR/nft.d DIR/nft.d/nft. So a dynamic program of one distribution runs on every other, and from
// any directory; see protocols.c for what it does not take from the machine.
#include "tiny.h"

enum { AT_FDCWD = -100, MAX_PATH = 4096, MAX_ARGS = 4096 };

static char self[MAX_PATH], libs[MAX_PATH + 16], loader[MAX_PATH + 32], preload[MAX_PATH + 32], program[2 * MAX_PATH + 32];
static char *args[MAX_ARGS + 8];

static char *append(char *to, const char *from)
{
	while (*from)
		*to++ = *from++;
	*to = 0;
	return to;
}

void start(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);
	char **env = argv + argc + 1;

	long n = sys4(SYS_readlinkat, AT_FDCWD, (long)"/proc/self/exe", (long)self, MAX_PATH - 1);
	if (n <= 0 || n >= MAX_PATH - 1 || argc > MAX_ARGS) {
		complain("launch: cannot find my own directory in /proc/self/exe\n");
		quit(127);
	}
	self[n] = 0;
	char *name = self;
	for (char *p = self; *p; p++)
		if (*p == '/')
			name = p + 1;

	append(append(libs, self), ".d");
	append(append(loader, libs), "/ld.so");
	append(append(preload, libs), "/protocols.so");
	append(append(append(program, libs), "/"), name);

	int i = 0;
	args[i++] = loader;
	args[i++] = "--preload";
	args[i++] = preload;
	args[i++] = "--library-path";
	args[i++] = libs;
	args[i++] = program;
	for (long a = 1; a < argc; a++)
		args[i++] = argv[a];
	args[i] = 0;
	sys4(SYS_execve, (long)loader, (long)args, (long)env, 0);
	complain("launch: cannot run the loader in ");
	complain(libs);
	complain("\n");
	quit(127);
}
