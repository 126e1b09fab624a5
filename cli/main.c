/* main.c - `tplabench COMMAND`: finds the command, parses its options, runs it, prints the one error line there may be. */
#include <argp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/command.h"
#include "device/procs.h"
#include "engine/remote.h"

#ifndef TPL_VERSION
#define TPL_VERSION "unknown"
#endif
#ifndef TPL_HOME
#define TPL_HOME "."
#endif

static const cli_command *const commands[] = {&cmd_run, &cmd_convert, &cmd_eval, &cmd_kernels, &cmd_latency, &cmd_handoff, &cmd_speculate, &cmd_published, &cmd_plan, &cmd_info, &cmd_generate, &cmd_tokenize, &cmd_logits};

enum { N_COMMANDS = sizeof commands / sizeof *commands, FIRST_KEY = 256, MAX_OPTIONS = 48 };

const cli_command *cli_find(const char *name)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

const cli_option *cli_find_option(const cli_command *c, const char *key)
{
    for (const cli_option *o = c->options; o->key; o++)
        if (strcmp(o->key, key) == 0)
            return o;
    return NULL;
}

const char *cli_home(void)
{
    const char *home = getenv("TPLABENCH_HOME");
    return home && *home ? home : TPL_HOME;
}

static void print_usage(FILE *out)
{
    fputs("Usage: tplabench COMMAND [OPTION...]\n"
          "Benchmarks and accuracy of MLA, GQA, GLA, DCP and TPLA attention under tensor parallelism.\n\n",
          out);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->about);
    fputs("\nEach command has --help. Exit status: 0 ok, 1 ran and found a mismatch, 2 usage, 3 input or output,\n"
          "4 device or memory, 130 interrupted (what was measured is kept).\n\n"
          "Examples:\n  tplabench run quick\n  tplabench plan --model models/shapes/deepseek-v3.json --variant mla,tpla --tp 1,2\n",
          out);
}

/* ---- one command's argp parser over its option table ---- */

typedef struct {
    const cli_command *cmd;
    cli_context *ctx;
    void *state;
    tpl_code rc;
    tpl_err err;
} parse_state;

/* Long options alone, but --out is also -o. */
static int key_of_option(const cli_option *o, int index)
{
    return strcmp(o->key, "out") == 0 ? 'o' : FIRST_KEY + index;
}

static error_t parse_one(int key, char *value, struct argp_state *s)
{
    parse_state *p = s->input;
    const char *name = NULL;
    if (key == 'o')
        name = "out";
    else if (key >= FIRST_KEY && key < FIRST_KEY + MAX_OPTIONS)
        name = p->cmd->options[key - FIRST_KEY].key;
    else if (key != ARGP_KEY_ARG)
        return ARGP_ERR_UNKNOWN;
    if (!name && !p->cmd->args)
        argp_error(s, "unexpected argument '%s'", value);
    p->rc = p->cmd->set(p->state, p->ctx, name, value ? value : "on", &p->err);
    return p->rc == TPL_OK ? 0 : ECANCELED;
}

static tpl_code parse_command(parse_state *p, int argc, char **argv, tpl_err *e)
{
    struct argp_option options[MAX_OPTIONS + 1] = {0};
    int n = 0;
    for (const cli_option *o = p->cmd->options; o->key; o++, n++)
        options[n] = (struct argp_option){.name = o->key, .key = key_of_option(o, n), .arg = o->value, .doc = o->help};
    char *doc = arena_printf(&p->ctx->mem, "%s\v%s%s", p->cmd->about, "Examples:\n", p->cmd->examples);
    char *name = arena_printf(&p->ctx->mem, "tplabench %s", p->cmd->name);
    struct argp parser = {.options = options, .parser = parse_one, .args_doc = p->cmd->args, .doc = doc};
    argv[0] = name;
    argp_err_exit_status = tpl_exit_status(TPL_E_USAGE);
    setenv("ARGP_HELP_FMT", "rmargin=124", 0); /* examples stay on one line each, so that they can be copied */
    if (argp_parse(&parser, argc, argv, 0, NULL, p) != 0) {
        *e = p->err;
        return p->rc ? p->rc : tpl_fail(e, TPL_E_USAGE, p->cmd->name, "cannot read the options");
    }
    return TPL_OK;
}

static char *join_words(arena *a, int argc, char **argv)
{
    text_buf b = {0};
    text_addf(&b, "tplabench");
    for (int i = 1; i < argc; i++)
        text_addf(&b, strpbrk(argv[i], " \t\"'$*;&|<>()") ? " '%s'" : " %s", argv[i]);
    char *joined = arena_strdup(a, b.data);
    text_fini(&b);
    return joined;
}

static tpl_code run_command(const cli_command *cmd, int argc, char **argv, tpl_err *e)
{
    cli_context ctx = {.argc = argc, .argv = argv};
    arena_init(&ctx.mem);
    ctx.command = join_words(&ctx.mem, argc, argv);
    char **rest = arena_array(&ctx.mem, char *, argc);
    memcpy(rest, argv + 1, sizeof *rest * (size_t)(argc - 1));
    parse_state p = {.cmd = cmd, .ctx = &ctx, .state = tpl_calloc(1, cmd->state_bytes)};
    tpl_code rc = parse_command(&p, argc - 1, rest, e);
    if (rc == TPL_OK)
        rc = cmd->run(p.state, &ctx, e);
    free(p.state);
    arena_fini(&ctx.mem);
    return rc;
}

/* The value of an option among the words, NULL: it is not there. For what must be known before options are parsed. */
static const char *early_value(int argc, char **argv, const char *option)
{
    size_t n = strlen(option);
    for (int i = 2; i < argc; i++) {
        if (strncmp(argv[i], option, n) == 0 && argv[i][n] == '=')
            return argv[i] + n + 1;
        if (strcmp(argv[i], option) == 0 && i + 1 < argc)
            return argv[i + 1];
    }
    return NULL;
}

static bool wants_ranks(int argc, char **argv, const char *kind)
{
    const char *given = early_value(argc, argv, "--ranks");
    return given && strcmp(given, kind) == 0;
}

/* `--ranks procs`: one process a rank of --tp, started here, before this process has threads. */
static tpl_code start_ranks(int argc, char **argv, int *status, tpl_err *e)
{
    const char *tp = early_value(argc, argv, "--tp");
    int64_t n = 1;
    if (tp && !text_parse_i64(tp, &n))
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is '%s', expected one number of ranks with --ranks procs", tp);
    return procs_start((int)(n < 0 || n > PROCS_MAX ? 0 : n), status, e);
}

/* Process 0 runs the command; the others repeat its calls on the engine until it ends. A rank that lost another cannot
 * tell the rest: the launcher ends them. */
static tpl_code run_or_follow(const cli_command *cmd, int argc, char **argv, tpl_err *e)
{
    if (wants_ranks(argc, argv, "mpi"))
        TPL_TRY(procs_open(e));
    bool leads = procs_rank() == 0;
    tpl_code rc = leads ? run_command(cmd, argc, argv, e) : remote_serve(e);
    if (rc != TPL_OK && (!leads || (remote_leads() && rc == TPL_E_DEVICE))) {
        char why[512];
        snprintf(why, sizeof why, "%s: %s", e->where, e->what);
        procs_abort(why, tpl_exit_status(rc));
    }
    if (remote_leads())
        remote_announce(REMOTE_END, NULL, 0, NULL, NULL);
    procs_close();
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? tpl_exit_status(TPL_E_USAGE) : 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("tplabench " TPL_VERSION);
        return 0;
    }
    const cli_command *cmd = cli_find(argv[1]);
    if (!cmd) {
        fprintf(stderr, "tplabench: no such command '%s'; tplabench --help lists them\n", argv[1]);
        return tpl_exit_status(TPL_E_USAGE);
    }
    tpl_err e = {0};
    tpl_code rc = TPL_OK;
    int status = PROCS_IS_RANK;
    if (wants_ranks(argc, argv, "procs"))
        rc = start_ranks(argc, argv, &status, &e);
    if (rc == TPL_OK && status != PROCS_IS_RANK)
        return status;
    if (procs_rank() == 0)
        interrupt_install();
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit becomes an error of write() like a full disk */
    if (rc == TPL_OK)
        rc = run_or_follow(cmd, argc, argv, &e);
    progress_clear();
    if (rc == TPL_OK && fflush(stdout) != 0)
        rc = tpl_fail(&e, TPL_E_IO, "standard output", "cannot be written");
    if (rc != TPL_OK)
        fprintf(stderr, "tplabench %s: %s%s%s\n", cmd->name, e.where, *e.where ? ": " : "", e.what);
    return tpl_exit_status(rc);
}
