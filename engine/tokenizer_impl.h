/* tokenizer_impl.h - the parts of a tokenizer, shared by engine/tokenizer*.c.
 * For:    text runs through lists of steps (normaliser, pre-tokenizer, decoder), each of which rewrites a list of
 *         pieces; the model then turns each piece into ids.
 * Enter:  engine/tokenizer*.c only.
 * Owns:   a tokenizer owns its arena and compiled patterns; a tok_work is the scratch of one call on one thread.
 * Fails:  as tokenizer.h; messages begin with the tokenizer's `where`. */
#ifndef TPL_ENGINE_TOKENIZER_IMPL_H
#define TPL_ENGINE_TOKENIZER_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/arena.h"
#include "base/json.h"
#include "engine/tokenizer.h"

/* Sizes beyond these are refused, so that 32-bit offsets and counts never overflow. */
enum {
    TOK_MAX_ID = 1 << 22,
    TOK_MAX_TEXT = 1 << 28,   /* bytes handed to tokenizer_encode */
    TOK_MAX_PIECES = 1 << 30, /* bytes after any step */
    TOK_MAX_NESTING = 8,      /* Sequence in Sequence */
    TOK_DIRECT_CHARS = 0x200  /* code points that byte-level files use */
};

/* ---- tables ---- */

typedef struct {
    const char *s; /* borrows from the arena */
    uint32_t len;
    int32_t id;
} tok_map_slot;

/* Bytes to id; open addressing, at most half full. */
typedef struct {
    tok_map_slot *slots; /* [mask + 1] */
    uint32_t mask;
} tok_map;

void tok_map_init(tok_map *m, arena *a, size_t n_entries);
bool tok_map_put(tok_map *m, const char *s, size_t len, int32_t id); /* false if s is there already */
int32_t tok_map_get(const tok_map *m, const char *s, size_t len);    /* -1 if absent */

typedef struct {
    const char *text;    /* as stored; NULL for an unused id */
    const char *decoded; /* what decoding starts from: text, or its normalised form for a normalised added token */
    uint32_t decoded_len;
    bool special, added;
    bool single_word, lstrip, rstrip, normalized;
    bool raw; /* the byte-level decoder takes `decoded` as it is */
} tok_token;

typedef struct {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX for an empty slot */
    uint32_t rank;
    int32_t result;
} tok_merge;

typedef struct {
    tok_merge *slots; /* [mask + 1] */
    uint32_t mask;
    int32_t *result; /* [n_ranks], -1 for a rank without a merge */
    uint32_t n_ranks;
} tok_merges;

void tok_merges_init(tok_merges *m, arena *a, size_t n_merges, uint32_t n_ranks);
bool tok_merges_put(tok_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t result); /* false if there */
const tok_merge *tok_merges_get(const tok_merges *m, int32_t left, int32_t right);              /* NULL if absent */

/* Added tokens by their bytes: children of a node are a linked list. */
typedef struct {
    int32_t child, sibling, id; /* -1 for none */
    uint8_t byte;
} tok_trie_node;

typedef struct {
    tok_trie_node *v;
    int32_t n, cap;
    int32_t root[256]; /* first level by byte, -1 for none */
} tok_trie;

/* ---- patterns ---- */

typedef struct tok_pattern tok_pattern;
struct tok_pattern {
    const char *text; /* as in the file */
    size_t len;
    pcre2_code *code; /* NULL for a literal */
    tok_pattern *next;
};

typedef struct {
    uint32_t begin, end;
    bool match;
} tok_cut;

/* ---- pieces and scratch ---- */

typedef struct {
    uint32_t begin, end; /* bytes of the owner's text */
    int32_t id;          /* an added token that is already decided, else -1 */
    bool first;          /* starts where the whole text starts; in decoding: the token is raw */
} tok_span;

typedef struct {
    text_buf text;
    tok_span *v;
    size_t n, cap;
} tok_pieces;

typedef struct {
    int32_t id; /* -1 once merged into its left neighbour */
    int32_t prev, next;
} tok_symbol;

typedef struct {
    const tokenizer *t;
    tok_pieces now, next; /* a step reads `now` and writes `next` */
    bool too_long;
    tok_cut *cuts;
    size_t n_cuts, cap_cuts;
    tok_symbol *symbols;
    size_t n_symbols, cap_symbols;
    uint64_t *heap; /* rank << 32 | position, smallest first */
    size_t n_heap, cap_heap;
    int32_t *ids;
    size_t n_ids, cap_ids;
    pcre2_match_data *match; /* these three are made by the first pattern */
    pcre2_match_context *match_context;
    pcre2_jit_stack *jit_stack;
} tok_work;

void tok_work_init(tok_work *w, const tokenizer *t);
void tok_work_fini(tok_work *w);

/* Grows *v of items of `size` bytes so that index n fits. */
void tok_reserve(void **v, size_t *cap, size_t n, size_t size);

const char *tok_span_text(const tok_work *w, const tok_span *s); /* in w->now */
void tok_next_add(tok_work *w, const char *s, size_t n, bool first);
void tok_next_add_token(tok_work *w, int32_t id);
void tok_next_begin(tok_work *w); /* empties `next` */
void tok_next_done(tok_work *w);  /* `next` becomes `now` */

/* ---- steps ---- */

typedef enum { TOK_REMOVED, TOK_ISOLATED, TOK_MERGED_PREVIOUS, TOK_MERGED_NEXT, TOK_CONTIGUOUS } tok_behavior;
typedef enum { TOK_PREPEND_ALWAYS, TOK_PREPEND_FIRST, TOK_PREPEND_NEVER } tok_prepend;

typedef struct tok_step tok_step;
struct tok_step {
    tpl_code (*run)(const tok_step *s, tok_work *w, tpl_err *e);
    const tok_pattern *pattern; /* Split, Replace, ByteLevel's own */
    const char *content;        /* Prepend, Replace; the one character of Metaspace and Strip */
    size_t content_len;
    tok_behavior behavior;
    bool invert;
    bool prefix_space; /* ByteLevel */
    bool split;        /* Metaspace */
    tok_prepend prepend;
    bool compat, compose; /* Unicode normalisation forms */
    int64_t start, stop;  /* Strip, in characters */
};

typedef struct {
    tok_step *v;
    int n, cap;
} tok_steps;

typedef tpl_code tok_step_parse(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e);

typedef struct {
    const char *type;
    tok_step_parse *parse;
} tok_step_kind;

/* A stage: which field of the file, how its Sequence names its members, and the types this build has. */
typedef struct {
    const char *field, *list;
    const tok_step_kind *kinds; /* ends with a NULL type */
} tok_stage;

extern const tok_stage tok_normalizer_stage, tok_pretokenizer_stage, tok_decoder_stage;

/* A new zeroed step at the end; the pointer is good until the next push. */
tok_step *tok_steps_push(tokenizer *t, tok_steps *steps);
/* Reads one node (null adds nothing, Sequence adds its members) onto *steps. */
tpl_code tok_steps_parse(tokenizer *t, const tok_stage *stage, const json_t *node, tok_steps *steps, tpl_err *e);
tpl_code tok_steps_run(const tok_steps *steps, tok_work *w, tpl_err *e);
/* {"String": s} or {"Regex": s} in field "pattern". */
tpl_code tok_parse_pattern(tokenizer *t, const json_t *node, bool allow_regex, const tok_pattern **out, tpl_err *e);
/* A required string field into the arena; a NUL inside is kept and counted. */
tpl_code tok_parse_text(tokenizer *t, const json_t *node, const char *key, const char **s, size_t *len, tpl_err *e);
/* The same, of exactly one character. */
tpl_code tok_parse_char(tokenizer *t, const json_t *node, const char *key, const char **s, size_t *len, tpl_err *e);

/* Metaspace means the same fields as a pre-tokenizer and as a decoder; run is left to the caller. */
tpl_code tok_metaspace_fields(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e);

/* The steps that Kimi's tiktoken file implies, which has no list of its own. */
tpl_code tok_steps_add_split(tokenizer *t, const char *regex, tpl_err *e);
void tok_steps_add_bytes(tokenizer *t);
void tok_steps_add_byte_decoder(tokenizer *t);

/* ---- the whole ---- */

struct tokenizer {
    arena mem;
    const char *where;
    tok_token *tokens; /* [n_tokens] */
    int32_t n_tokens;
    tok_map vocab; /* the model's own tokens */
    tok_map added; /* added tokens, looked up first */
    tok_merges merges;
    int32_t char_id[TOK_DIRECT_CHARS]; /* single-character tokens, -1 for none */
    int32_t byte_id[256];              /* "<0x00>" to "<0xFF>", -1 for none */
    int32_t unk_id;                    /* -1: unknown characters add nothing */
    bool fuse_unk, byte_fallback, ignore_merges;
    tok_trie plain_added, normalized_added;
    tok_steps normalizers, pretokenizers, decoders;
    bool has_decoder;                /* without one, decoding joins tokens by a blank */
    uint32_t chunk_chars, run_chars; /* text is first cut as tiktoken's callers cut it; 0: not cut */
    tok_pattern *patterns;
    tok_pattern *word; /* one character that continues a word (single_word) */
};

tokenizer *tok_create(const char *where);
/* Fills char_id and byte_id from vocab. */
void tok_index_chars(tokenizer *t);

/* Compiles an Oniguruma-style expression; the pattern lives as long as t. */
tpl_code tok_pattern_regex(tokenizer *t, const char *s, size_t len, tok_pattern **out, tpl_err *e);
tok_pattern *tok_pattern_literal(tokenizer *t, const char *s, size_t len);
void tok_patterns_free(tok_pattern *list);
/* Fills w->cuts with contiguous cuts of s[n]: matches and what lies between. */
tpl_code tok_pattern_cuts(const tok_pattern *p, tok_work *w, const char *s, size_t n, tpl_err *e);
/* Does the pattern match s[n] anywhere? Errors count as no. */
bool tok_pattern_matches(const tok_pattern *p, tok_work *w, const char *s, size_t n);
void tok_cuts_clear(tok_work *w);
void tok_cut_add(tok_work *w, size_t begin, size_t end, bool match); /* empty cuts are kept */
/* Rewrites an expression for PCRE2; *why says what is not supported. Appends to *out. */
bool tok_regex_translate(const char *s, size_t len, text_buf *out, const char **why);

/* Adds t->tokens[id] to the trie its flags ask for; needs the normaliser. */
tpl_code tok_added_insert(tokenizer *t, int32_t id, tpl_err *e);
/* Splits every undecided piece at the added tokens of one trie. */
void tok_added_split(const tok_trie *trie, tok_work *w);

void tok_add_id(tok_work *w, int32_t id); /* appends to w->ids */
/* Appends the ids of one piece to w->ids. */
void tok_bpe_encode(tok_work *w, const char *s, size_t n);

/* Kimi's layout; `config` is tokenizer_config.json. */
tpl_code tok_load_tiktoken(const char *data, size_t len, const json_t *config, const char *where, tokenizer **out,
                           tpl_err *e);

/* ---- UTF-8 ---- */

/* Length of the valid character at s[0..n), or 0. */
size_t tok_utf8_valid(const char *s, size_t n);
/* Code point and length of the character at s, which must be valid. */
uint32_t tok_utf8_get(const char *s, size_t *len);
size_t tok_utf8_put(uint32_t cp, char out[4]);
/* Start of the character that ends at s[end), end > 0, in valid text. */
size_t tok_utf8_back(const char *s, size_t end);
/* Appends s[n] with every maximal invalid subpart as U+FFFD. */
void tok_utf8_repair(const char *s, size_t n, text_buf *out);
bool tok_is_space(uint32_t cp); /* Unicode White_Space */

/* The printable character that stands for a byte in byte-level files (GPT-2's table), and back (-1 if none). */
uint32_t tok_byte_char(uint8_t byte);
int tok_char_byte(uint32_t cp);

#endif
