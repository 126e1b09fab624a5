/* card.h - what cards say of themselves, for people and for run.json.
 * For:    cli/cmd_*.c.  Enter: cli/.
 * Owns:   cli_watch_cards() opens watches (card_watches_close(), after a failure too).
 * Fails:  TPL_E_DEVICE where a card cannot be opened, TPL_E_IO; a machine without NVML is no failure. */
#ifndef TPL_CLI_CARD_H
#define TPL_CLI_CARD_H

#include "bench/card_clock.h"
#include "engine/team.h"
#include "results/run_dir.h"

/* A few lines a card that NVML sees, on stdout; nothing without any. */
void cli_print_cards(void);
/* Watches the cards that ranks of backend "cuda" use, and writes what they say of themselves into run.json:
 * "card0.driver", "card0.clocks_mhz", ... Where NVML does not know a card a note says so, and no sample is thrown away
 * on its behalf. Other backends (NULL too) watch nothing. */
tpl_code cli_watch_cards(const char *backend, ranks_kind ranks, card_watches *out, run_dir *rd, tpl_err *e);
/* The measuring loop's clock: of the cards watched, or NULL for the host's own. `room` holds it. */
const bench_clock *cli_clock(const char *backend, card_watches *w, bench_clock *room);

#endif
