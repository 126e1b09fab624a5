#include "datasets/templates.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"

typedef struct {
    const char *dataset, *text;
} template_row;

/* LongBench's wording, typographical slips and trailing blanks included; kv is a set of the fixture's own. */
static const template_row TEMPLATES[] = {
    {"multifieldqa_en",
     "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question "
     "based on the above text, only give me the answer and do not output any other words.\n\nQuestion: "
     "{input}\nAnswer:"},
    {"hotpotqa", "Answer the question based on the given passages. Only give me the answer and do not output any "
                 "other words.\n\nThe following are given passages.\n{context}\n\nAnswer the question based on the "
                 "given passages. Only give me the answer and do not output any other words.\n\nQuestion: {input}\n"
                 "Answer:"},
    {"multi_news", "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
                   "Now, write a one-page summary of all the news.\n\nSummary:"},
    {"trec", "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n"
             "{input}"},
    {"passage_count",
     "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
     "carefully read these paragraphs and determine how many unique paragraphs there are after removing "
     "duplicates. In other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\n"
     "Please enter the final count of unique paragraphs after removing duplicates. The output format "
     "should only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: "},
    {"passage_retrieval_en",
     "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the "
     "abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the "
     "number of the paragraph that the abstract is from. The answer format must be like \"Paragraph 1\", "
     "\"Paragraph 2\", etc.\n\nThe answer is: "},
    {"lcc", "Please complete the code given below. \n{context}Next line of code:\n"},
    {"kv", "Here is a list of codes.\n\n{context}\n\nQuestion: {input}\nAnswer:"},
};

enum { N_TEMPLATES = sizeof TEMPLATES / sizeof *TEMPLATES };

static const char *find_text(const char *dataset)
{
    for (int i = 0; i < N_TEMPLATES; i++)
        if (strcmp(TEMPLATES[i].dataset, dataset) == 0)
            return TEMPLATES[i].text;
    return NULL;
}

typedef struct {
    const char *mark, *value;
} slot;

enum { PROMPT_MAX_BYTES = 1 << 28 }; /* a context full of marks could otherwise ask for any amount of memory */

/* Copies `text` with every mark replaced; of two marks the one that comes first is taken. False if it grows too long.
 */
static bool fill(text_buf *out, const char *text, const slot *slots, int n_slots)
{
    while (out->len <= PROMPT_MAX_BYTES) {
        const char *at = NULL;
        const slot *hit = NULL;
        for (int i = 0; i < n_slots; i++) {
            const char *p = strstr(text, slots[i].mark);
            if (p && (!at || p < at)) {
                at = p;
                hit = &slots[i];
            }
        }
        if (!hit) {
            text_add(out, text, strlen(text));
            return true;
        }
        text_add(out, text, (size_t)(at - text));
        text_add(out, hit->value, strlen(hit->value));
        text = at + strlen(hit->mark);
    }
    return false;
}

static tpl_code fail_unknown(const char *dataset, const char *where, tpl_err *e)
{
    char names[160] = "";
    for (int i = 0; i < N_TEMPLATES; i++)
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", TEMPLATES[i].dataset);
    return tpl_fail(e, TPL_E_UNSUPPORTED, where, "field 'dataset' is '%.40s', expected one with a prompt template: %s",
                    dataset, names);
}

tpl_code template_fill(arena *a, const char *dataset, fill_rule rule, const char *context, const char *input,
                       char **prompt, const char *where, tpl_err *e)
{
    const char *text = find_text(dataset);
    if (!text)
        return fail_unknown(dataset, where, e);
    slot slots[] = {{"{context}", context}, {"{input}", input}};
    text_buf once = {0}, twice = {0};
    bool ok = fill(&once, text, slots, rule == FILL_ONCE ? 2 : 1);
    if (ok && rule == FILL_IN_TURN)
        ok = fill(&twice, once.data, slots + 1, 1);
    text_buf *last = rule == FILL_ONCE ? &once : &twice;
    if (ok)
        *prompt = arena_strndup(a, last->data, last->len);
    text_fini(&once);
    text_fini(&twice);
    return ok ? TPL_OK
              : tpl_fail(e, TPL_E_INPUT, where, "the filled-in prompt exceeds %d bytes, expected at most that",
                         PROMPT_MAX_BYTES);
}
