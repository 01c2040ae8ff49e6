"""The `recsys` command. Thin: each verb reads its config and calls the job of its name.

Exit codes: 0 done, 1 a gate failed, 2 a usage or config error (one message on standard error).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import RecsysError

DONE, GATE_FAILED, USAGE = 0, 1, 2

app = typer.Typer(
    name="recsys",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="From raw events to a registered model that scores: `recsys run configs/synthetic.yaml`.",
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Overrides, such as `train.epochs=3`.")
]
Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]
AnyModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run's or a bundle's folder, or `models:/NAME@ALIAS`.")
]
Experiment = Annotated[
    Path | None,
    typer.Option("--config", help="The experiment whose side tables and rules raw rows get; a run has its own."),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG|RUN|MODEL", help="A YAML file, a run's or a bundle's folder, or `models:/NAME@ALIAS`."
    ),
]
Split = Annotated[str, typer.Option("--split", help="Of prepared data: train, valid or test.")]
Keep = Annotated[str, typer.Option("--keep", help="Columns carried along, such as titles, separated by commas.")]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A file or glob of raw rows.")]
Label = Annotated[str | None, typer.Option("--label", help="Column of 0 and 1; looked for by default.")]
Time = Annotated[str | None, typer.Option("--time", help="Column with the time; looked for by default.")]
RunName = Annotated[str | None, typer.Option("--run", help="A run's number; the newest trained one by default.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the newest run or search if it was cut.")]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="The registered model.")]
TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="The MLflow store.")
]
Workspace = Annotated[Path, typer.Option("--workspace", help="Where the MLflow store is looked for.")]
ValuesOf = Annotated[
    str | None,
    typer.Option("--data", help="A file or glob of rows that hold the values or items; a run has its own."),
]


@app.command()
def profile(
    source: Source,
    as_json: Json = False,
    label: Label = None,
    time: Time = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; `work/NAME/profile` by default.")] = None,
) -> None:
    """Show what a source holds, what predicts its label, and what to do with each column; writes a page.

    `recsys profile events.parquet`

    `recsys profile "logs/day-*.csv.gz" --label click --time at --out profile`
    """
    with _job(as_json) as job:
        from pipelines.profile import profile

        job.result = profile(source, job.console, label=label, time=time, out=out)


@app.command()
def init(
    source: Source,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option("--out", help="The YAML file; `NAME.yaml` by default.")] = None,
    label: Label = None,
    time: Time = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the experiment; made from the source's by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a config that runs as it stands from what a source holds.

    `recsys init events.parquet`

    `recsys init "logs/day-*.csv.gz" --label click --out clicks.yaml --name clicks`
    """
    with _job(as_json) as job:
        from pipelines.init import init

        job.result = init(source, job.console, out=out, label=label, time=time, name=name, force=force)


@app.command()
def prepare(
    config: Config,
    overrides: Overrides = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Prepare everything anew.")] = False,
    as_json: Json = False,
) -> None:
    """Turn raw events into a store of encoded rows; used again while config and data stay the same.

    `recsys prepare configs/criteo.yaml`
    """
    with _job(as_json) as job:
        from pipelines.prepare import prepare

        job.result = prepare(_load(config, overrides), job.console, rebuild=rebuild)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print regions, rows, bytes and parameters; train nothing.")
    ] = False,
) -> None:
    """Train on the prepared data; makes a new run.

    `recsys train configs/synthetic.yaml train.epochs=3 embedding.rows=50000`

    `recsys train configs/synthetic.yaml --dry-run`
    """
    with _job(as_json) as job:
        from pipelines import train as jobs

        settings = _load(config, overrides)
        job.result = (
            jobs.dry_run(settings, job.console) if dry_run else jobs.train(settings, job.console, resume=resume)
        )


@app.command()
def evaluate(
    target: Target,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [key=value]",
            help="Of a model: prepared data (a folder) or labelled raw rows (a file or glob). Of a config: overrides.",
        ),
    ] = None,
    as_json: Json = False,
    run: RunName = None,
    split: Annotated[str, typer.Option("--split", help="Of prepared data: test or valid.")] = "test",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the report; of a model with DATA.")] = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Evaluate a run on its test split, or any model on labelled rows: metrics, slices, importance, report, gates.

    `recsys evaluate configs/synthetic.yaml gates.auc.min=0.7`

    `recsys evaluate models:/synthetic@challenger events.parquet --out report`
    """
    _check_choice("--split", split, "test", "valid")
    with _job(as_json) as job:
        from recsys.serving.registry import is_model_uri

        if is_model_uri(target) or Path(target).is_dir():
            if run is not None:
                raise typer.BadParameter("goes with a config only", param_hint="--run")
            from pipelines.evaluate_model import evaluate_model

            uri = _tracking_uri(tracking_uri, workspace)
            job.result = evaluate_model(target, arguments or [], job.console, tracking_uri=uri, out=out, split=split)
        else:
            if out is not None:
                raise typer.BadParameter("goes with a model and DATA only", param_hint="--out")
            from pipelines.evaluate import evaluate

            job.result = evaluate(_load(Path(target), arguments), job.console, run_name=run, split=split)


@app.command()
def register(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    run: RunName = None,
    format: Annotated[
        str | None, typer.Option("--format", help="What `convert` made of the run, in place of its own bundle.")
    ] = None,
) -> None:
    """Register a run's model and point the alias at it.

    `recsys register configs/synthetic.yaml tracking.alias=challenger`

    `recsys register configs/synthetic.yaml --format int8`
    """
    with _job(as_json) as job:
        from pipelines.register import register

        job.result = register(_load(config, overrides), job.console, run_name=run, format=format)


@app.command()
def score(
    model: AnyModel,
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Raw rows: a file, glob, folder, Delta table or URL; no labels needed.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="What to write: a file that ends in .parquet, or a folder.")
    ],
    as_json: Json = False,
    keep: Keep = "",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows read at a time.")] = 65_536,
    config: Experiment = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Set rows aside that cannot be used, instead of ending.")
    ] = False,
    max_bad_share: Annotated[
        float | None, typer.Option("--max-bad-share", min=0, max=1, help="A larger share of them is an error.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Batches at the same time; one a processor by default.")
    ] = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Score raw rows of any number, in their order; goes on where a killed run was.

    `recsys score models:/synthetic@challenger events.parquet scores.parquet --keep user_id`

    `recsys score models:/synthetic@challenger "logs/*.csv.gz" scores/ --keep user_id,at --quarantine`
    """
    with _job(as_json) as job:
        from pipelines.score import score

        uri = _tracking_uri(tracking_uri, workspace)
        job.result = score(
            model,
            source,
            out,
            job.console,
            tracking_uri=uri,
            batch_size=batch_size,
            keep=_names(keep),
            config=config,
            quarantine=quarantine,
            max_bad_share=max_bad_share,
            workers=workers,
        )


@app.command()
def export(
    model: AnyModel,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .parquet, or .arrow for Arrow.")],
    as_json: Json = False,
    feature: Annotated[str | None, typer.Option("--feature", help="A vector for each value of this feature.")] = None,
    item: Annotated[
        str, typer.Option("--item", help="A vector for each item: what these features, separated by commas, read.")
    ] = "",
    data: ValuesOf = None,
    keep: Keep = "",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the numbers: fp32 or fp16.")] = "fp32",
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Write a vector for each value of a feature, or for each item, to Parquet or Arrow.

    `recsys export models:/synthetic@champion ads.parquet --feature ad_id --data events.parquet`

    `recsys export work/synthetic/runs/0001 items.arrow --item ad_id,publisher_id,tags --dtype fp16`
    """
    if (feature is None) == (not item):
        raise typer.BadParameter("give one of the two", param_hint="--feature or --item")
    _check_choice("--dtype", dtype, "fp32", "fp16")
    with _job(as_json) as job:
        from pipelines import export as jobs

        wanted = jobs.Wanted(feature, tuple(_names(item)), tuple(_names(keep)), dtype == "fp16")
        uri = _tracking_uri(tracking_uri, workspace)
        job.result = jobs.export(model, out, job.console, tracking_uri=uri, data=data, wanted=wanted)


@app.command()
def neighbours(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="`models:/NAME@ALIAS`, the folder of a run or of a bundle, or what `export` wrote.",
        ),
    ],
    query: Annotated[
        list[str],
        typer.Argument(metavar="NAME=VALUE", help="A feature and its value; of items a column, or several."),
    ],
    as_json: Json = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    by: Annotated[str, typer.Option("--by", help="cosine, or dot for inner products.")] = "cosine",
    index: Annotated[
        str, typer.Option("--index", help="exact, or ivf, which may miss some and takes long to build.")
    ] = "exact",
    min_count: Annotated[int, typer.Option("--min-count", min=1, help="Candidates occur so often in the data.")] = 1,
    item: Annotated[
        str, typer.Option("--item", help="Items in place of values: the features, separated by commas.")
    ] = "",
    data: ValuesOf = None,
    keep: Keep = "",
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Show which values, or items, a model holds to be most alike; needs FAISS (extra `neighbours`).

    `recsys neighbours work/movielens_1m/runs/0001 movie_id=1193 --keep title,genres --min-count 50`

    `recsys neighbours ads.parquet ad_id=17 -k 5 --by dot`
    """
    _check_choice("--by", by, "cosine", "dot")
    _check_choice("--index", index, "exact", "ivf")
    with _job(as_json) as job:
        from pipelines.neighbours import neighbours

        job.result = neighbours(
            source,
            query,
            job.console,
            tracking_uri=_tracking_uri(tracking_uri, workspace),
            data=data,
            item=_names(item),
            keep=_names(keep),
            k=k,
            similarity=by,  # type: ignore[arg-type]
            index=index,  # type: ignore[arg-type]
            min_count=min_count,
        )


@app.command(name="off-policy")
def off_policy(
    model: AnyModel,
    log: Annotated[str, typer.Argument(metavar="LOG", help="A file or glob of logged rows with propensities.")],
    as_json: Json = False,
    policy: Annotated[str, typer.Option("--policy", help="softmax or epsilon-greedy.")] = "softmax",
    temperature: Annotated[float, typer.Option("--temperature", help="Of softmax, over log odds.")] = 1.0,
    epsilon: Annotated[float, typer.Option("--epsilon", help="Of epsilon-greedy.")] = 0.1,
    slate: Annotated[bool, typer.Option("--slate", help="Fill the positions without showing anything twice.")] = False,
    candidates: Annotated[
        str | None, typer.Option("--candidates", help="A file with a row an action; those of the log by default.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option("--reward-model", help="Another model that guesses rewards; MODEL by default.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option("--folds", help="Cross-fit the reward model: train its run's config so many times.")
    ] = None,
    action: Annotated[str, typer.Option("--action", help="Column: what was shown.")] = "item_id",
    reward: Annotated[
        str | None, typer.Option("--reward", help="Column: what came of it; the model's label by default.")
    ] = None,
    propensity: Annotated[
        str, typer.Option("--propensity", help="Column: the chance the logging policy had to show it.")
    ] = "propensity_score",
    position: Annotated[
        str | None, typer.Option("--position", help="Column: where it was shown; `position` if there is one.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="Column: rows that belong together, such as a user's.")
    ] = None,
    clip: Annotated[float | None, typer.Option("--clip", help="The largest weight; none by default.")] = None,
    switch: Annotated[float, typer.Option("--switch", help="Above this weight switch-DR believes the model.")] = 10.0,
    max_weight: Annotated[
        float | None, typer.Option("--max-weight", help="What no weight can exceed, if it is known.")
    ] = None,
    level: Annotated[float, typer.Option("--level", help="Of the intervals.")] = 0.95,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap and the folds.")] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count rows that cannot be used, in place of an error.")
    ] = False,
    track: Annotated[bool, typer.Option("--track", help="Log the figures to the model's MLflow run.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The JSON; `off_policy.json` in the run, or here, by default.")
    ] = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Estimate what a policy made of a model would have earned, from what another policy logged.

    `recsys off-policy work/open_bandit/runs/0001 log.parquet --slate --temperature 0.5`

    `recsys off-policy models:/shop@challenger log.parquet --policy epsilon-greedy --clip 20`
    """
    _check_choice("--policy", policy, "softmax", "epsilon-greedy")
    with _job(as_json) as job:
        from pipelines import off_policy as jobs

        job.result = jobs.off_policy(
            model,
            log,
            job.console,
            tracking_uri=_tracking_uri(tracking_uri, workspace),
            columns=jobs.LogColumns(action, reward, propensity, position, group),
            policy=jobs.Policy(policy, temperature, epsilon, slate),  # type: ignore[arg-type]
            candidates=candidates,
            reward_model=reward_model,
            folds=folds,
            clip=clip,
            switch=switch,
            max_weight=max_weight,
            level=level,
            draws=draws,
            seed=seed,
            skip_bad=skip_bad,
            track=track,
            out=out,
        )


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="`models:/NAME@ALIAS`, which is followed, or a bundle's folder.")
    ],
    as_json: Json = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; one a core.")] = 1,
    poll_seconds: Annotated[
        float, typer.Option("--poll-seconds", min=0.1, help="The registry is asked this often.")
    ] = 2.0,
    timeout_ms: Annotated[int, typer.Option("--timeout-ms", min=1, help="Time to answer a request.")] = 1000,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests a worker has in hand; others get 429.")] = 128,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Rows or candidates of a request.")] = 1000,
    max_body_mb: Annotated[float, typer.Option("--max-body-mb", min=0.001, help="Size of a request's body.")] = 4.0,
    unknown_fields: Annotated[
        str, typer.Option("--unknown-fields", help="Fields the model does not read: ignore or refuse.")
    ] = "ignore",
    drain_seconds: Annotated[
        int, typer.Option("--drain-seconds", min=0, help="After SIGTERM, time to finish what is in hand.")
    ] = 30,
    log: Annotated[Path | None, typer.Option("--log", help="Folder of the prediction log.")] = None,
    log_sample: Annotated[float, typer.Option("--log-sample", min=0, max=1, help="Share of requests logged.")] = 1.0,
    log_seconds: Annotated[float, typer.Option("--log-seconds", min=0.1, help="Between two files of the log.")] = 60.0,
    log_max_mb: Annotated[
        float, typer.Option("--log-max-mb", min=0.001, help="Above this the log's oldest files are removed.")
    ] = 10_000.0,
    role: Annotated[str, typer.Option("--role", help="In the log: champion or challenger.")] = "champion",
    challenger: Annotated[
        str | None, typer.Option("--challenger", metavar="ALIAS", help="Its version answers a share of the requests.")
    ] = None,
    challenger_share: Annotated[
        float, typer.Option("--challenger-share", min=0, max=1, help="Share of requests it answers, by their ids.")
    ] = 0.1,
    shadow: Annotated[
        str | None,
        typer.Option("--shadow", metavar="ALIAS", help="Its version scores what was answered, for the log alone."),
    ] = None,
    shadow_sample: Annotated[
        float, typer.Option("--shadow-sample", min=0, max=1, help="Share of requests it scores.")
    ] = 1.0,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="PEM file of the server's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file of its key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option("--tls-client-ca", help="PEM file; clients must show a certificate signed by these.")
    ] = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Serve a model over HTTP; a version that the alias is moved to is taken up within seconds.

    API keys are read from the environment variable RECSYS_API_KEYS, separated by commas.

    `recsys serve models:/synthetic@champion --workers 2 --port 8080`

    `recsys serve models:/synthetic@champion --log logs/predictions --log-sample 0.1`

    `recsys serve models:/synthetic@champion --shadow challenger --shadow-sample 0.2 --log logs/predictions`

    `recsys serve models:/synthetic@champion --challenger challenger --challenger-share 0.1 --log logs/predictions`
    """
    _check_choice("--unknown-fields", unknown_fields, "ignore", "refuse")
    _check_choice("--role", role, "champion", "challenger")
    if (tls_cert is None) != (tls_key is None) or (tls_client_ca is not None and tls_cert is None):
        raise typer.BadParameter("TLS needs the server's certificate and its key", param_hint="--tls-cert, --tls-key")
    with _job(as_json) as job:
        from pipelines.serve import serve
        from pipelines.tls import Tls

        job.result = serve(
            model,
            job.console,
            tracking_uri=_tracking_uri(tracking_uri, workspace),
            host=host,
            port=port,
            workers=workers,
            poll_seconds=poll_seconds,
            drain_seconds=drain_seconds,
            log=log,
            log_max_bytes=int(log_max_mb * 1_000_000),
            tls=Tls(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key else None,
            settings={
                "timeout_ms": timeout_ms,
                "queue": queue,
                "max_rows": max_rows,
                "max_body_bytes": int(max_body_mb * 1_000_000),
                "unknown_fields": unknown_fields,
                "log_sample": log_sample,
                "log_seconds": log_seconds,
                "role": role,
                "challenger": challenger,
                "challenger_share": challenger_share,
                "shadow": shadow,
                "shadow_sample": shadow_sample,
            },
        )


@app.command()
def convert(
    model: AnyModel,
    format: Annotated[str, typer.Option("--format", help="fp32, bf16, fp16, int8, int4, int2 or int8-table.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Rows to measure the cost on: prepared data (a folder; its test split) or raw rows with labels (a "
            "file or glob). A run has its own.",
        ),
    ] = None,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The new bundle's folder; beside the model, `-FORMAT` added, by default."),
    ] = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Write a trained model anew with its rows in another format, and tell what that costs.

    `recsys convert work/synthetic/runs/0001 --format int8`

    `recsys convert models:/synthetic@challenger events.parquet --format int8 --out small`
    """
    with _job(as_json) as job:
        from pipelines.convert import convert_bundle

        uri = _tracking_uri(tracking_uri, workspace)
        job.result = convert_bundle(model, format, job.console, tracking_uri=uri, data=data, out=out)


@app.command()
def program(
    model: AnyModel,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; nothing is there.")],
    as_json: Json = False,
    aot: Annotated[bool, typer.Option("--aot", help="Compile it for this processor too (needs g++).")] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Rows to hold program and model against each other on: prepared data, or raw rows with labels.",
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Write a trained model as a torch.export program, which runs without this package.

    `recsys program work/synthetic/runs/0001 program`

    `recsys program models:/synthetic@champion program --aot --data events.parquet`
    """
    with _job(as_json) as job:
        from pipelines import program as jobs

        uri = _tracking_uri(tracking_uri, workspace)
        job.result = jobs.program(model, out, job.console, tracking_uri=uri, data=data, aot=aot)


@app.command()
def prune(
    model: AnyModel,
    keep: Annotated[float, typer.Option("--keep", help="Share of the rows to keep, such as 0.5.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Rows to rank and to measure on: prepared data (a folder; its train and its test split) or raw rows "
            "with labels (a file or glob). A run has its own.",
        ),
    ] = None,
    by: Annotated[str, typer.Option("--by", help="What ranks the rows: magnitude or gradient.")] = "gradient",
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The new bundle's folder; beside the model, `-pruned` added, by default."),
    ] = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Write a trained model anew without the rows that matter least, and tell what that costs.

    `recsys prune work/synthetic/runs/0001 --keep 0.5`

    `recsys prune models:/synthetic@challenger --keep 0.5 --by magnitude --out small`
    """
    with _job(as_json) as job:
        from pipelines.prune import prune_bundle

        uri = _tracking_uri(tracking_uri, workspace)
        job.result = prune_bundle(model, keep, by, job.console, tracking_uri=uri, data=data, out=out)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL MODEL [MODEL ...] DATA",
            help="Folders of runs or bundles, or `models:/NAME@ALIAS`; then prepared data (a folder) or raw rows with "
            "labels (a file or glob).",
        ),
    ],
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page.")] = None,
    split: Split = "test",
    by: Annotated[
        str | None, typer.Option("--by", help="What was drawn: row or group; group if the data has groups.")
    ] = None,
    effect: Annotated[
        float | None, typer.Option("--effect", help="Say how many rows it takes to see such a difference.")
    ] = None,
    min_rows: Annotated[int, typer.Option("--min-rows", min=2, help="Of a slice.")] = 1000,
    resamples: Annotated[int, typer.Option("--resamples", min=10, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Compare models on the same rows: differences with intervals, what may be claimed of them, and in which slices.

    `recsys compare work/synthetic/runs/0001 work/synthetic/runs/0002 work/synthetic/data --html comparison.html`

    `recsys compare models:/synthetic@champion models:/synthetic@challenger events.parquet --effect 0.001`
    """
    if by is not None:
        _check_choice("--by", by, "row", "group")
    if effect is not None and not effect > 0:
        raise typer.BadParameter("give a difference above 0", param_hint="--effect")
    with _job(as_json) as job:
        from pipelines.compare import compare

        job.result = compare(
            models,
            job.console,
            tracking_uri=_tracking_uri(tracking_uri, workspace),
            html=html,
            split=split,
            by=by,
            effect=effect,
            min_rows=min_rows,
            resamples=resamples,
            seed=seed,
        )


@app.command()
def promote(
    name: ModelName,
    as_json: Json = False,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Which version.")] = None,
    alias: Annotated[str, typer.Option("--alias", help="The version it points at, without --version.")] = "challenger",
    config: Annotated[
        Path | None, typer.Option("--config", help="Whose `promote:` counts; the version's own config by default.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Prepared data (a folder) or raw rows with labels; the version's own by default."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of prepared data: valid or test.")] = "test",
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Make a registered version the champion if the conditions under `promote:` hold; keeps the evidence.

    `recsys promote synthetic`

    `recsys promote synthetic --version 3 --config configs/synthetic.yaml --data yesterday.parquet`
    """
    with _job(as_json) as job:
        from pipelines.promote import promote

        job.result = promote(
            name,
            job.console,
            tracking_uri=_tracking_uri(tracking_uri, workspace),
            version=version,
            alias=alias,
            config=config,
            data=data,
            split=split,
        )


@app.command()
def rollback(
    name: ModelName, as_json: Json = False, tracking_uri: TrackingUri = None, workspace: Workspace = Path("work")
) -> None:
    """Put the champion back that was before the present one.

    `recsys rollback synthetic`
    """
    with _job(as_json) as job:
        from pipelines.promote import rollback

        job.result = rollback(name, job.console, tracking_uri=_tracking_uri(tracking_uri, workspace))


@app.command()
def history(
    name: ModelName, as_json: Json = False, tracking_uri: TrackingUri = None, workspace: Workspace = Path("work")
) -> None:
    """List the versions of a registered model, their aliases, and all decisions about them.

    `recsys history synthetic`
    """
    with _job(as_json) as job:
        from pipelines.promote import history

        job.result = history(name, job.console, tracking_uri=_tracking_uri(tracking_uri, workspace))


@app.command()
def run(config: Config, overrides: Overrides = None, as_json: Json = False, resume: Resume = False) -> None:
    """Prepare, search for widths if there is a `search:` section, train, evaluate and register.

    `recsys run configs/movielens_1m.yaml seed=1`
    """
    with _job(as_json) as job:
        from pipelines.run import run

        job.result = run(_load(config, overrides), job.console, resume=resume)


@app.command()
def search(config: Config, overrides: Overrides = None, as_json: Json = False, resume: Resume = False) -> None:
    """Search for the number of chunks each feature earns; writes an allocation.

    `recsys search configs/movielens_1m.yaml search.max_lookups=12`

    `recsys train configs/movielens_1m.yaml allocation=work/movielens_1m/searches/0001/allocation.json`
    """
    with _job(as_json) as job:
        from pipelines.search import search

        job.result = search(_load(config, overrides), job.console, resume=resume)


@app.command()
def inspect(
    target: Target,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [key=value]",
            help="Of a model: prepared data (a folder) or raw rows (a file or glob). Of a config: overrides.",
        ),
    ] = None,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page about the table.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Of a model: sample at most so many rows.")] = 200_000,
    split: Split = "train",
    config: Experiment = None,
    tracking_uri: TrackingUri = None,
    workspace: Workspace = Path("work"),
) -> None:
    """Show an experiment's data, plan and runs; or what a model holds and, with data, how it uses its table.

    `recsys inspect configs/synthetic.yaml embedding.rows=50000`

    `recsys inspect work/synthetic/runs/0001 --html table.html`

    `recsys inspect models:/synthetic@challenger events.parquet --html table.html`
    """
    with _job(as_json) as job:
        from pipelines import inspect as jobs
        from recsys.serving.registry import is_model_uri

        if is_model_uri(target) or Path(target).is_dir():
            job.result = jobs.inspect_model(
                target,
                arguments or [],
                job.console,
                tracking_uri=_tracking_uri(tracking_uri, workspace),
                html=html,
                rows=rows,
                split=split,
                config=config,
            )
        else:
            job.result = jobs.inspect(_load(Path(target), arguments), job.console, html=html)


@app.command()
def demo(overrides: Overrides = None, as_json: Json = False) -> None:
    """Learn a known truth from synthetic events, end to end.

    `recsys demo`
    """
    with _job(as_json) as job:
        from pipelines.demo import demo, demo_config

        job.result = demo(demo_config(overrides or []), job.console)


@app.command()
def progressive(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    every: Annotated[
        str | None, typer.Option("--every", help="Length of a window, such as 6h; a day by default.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Rows of a window, where the spec has no time.")
    ] = None,
    delay: Annotated[str, typer.Option("--delay", help="How long labels take, such as 1h; or a number of rows.")] = "0",
) -> None:
    """Train, then go through the test split in the order of time: predict a window, then learn from it.

    `recsys progressive configs/synthetic.yaml 'data.split={kind: time}' --every 1d --delay 1h`

    `recsys progressive configs/criteo.yaml --rows 1000 data.split.fractions=[0.5,0.1,0.4]`
    """
    with _job(as_json) as job:
        from pipelines.progressive import progressive

        job.result = progressive(_load(config, overrides), job.console, every=every, rows=rows, delay=delay)


@app.command()
def monitor(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="The prediction log: a folder of Parquet files, or a file.")
    ],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="The label log.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Such as `window=1h max_delay=30m unlabelled=missing`."),
    ] = None,
    as_json: Json = False,
    once: Annotated[bool, typer.Option("--once", help="Read what is there and end.")] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="With --once: the logs are over, nothing is waited for.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of results and state; `WORKSPACE/monitor` by default.")
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 10.0,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Predictions and inputs to hold the windows against.")
    ] = None,
    tracking_uri: TrackingUri = None,
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "monitor",
    workspace: Workspace = Path("work"),
) -> None:
    """Follow a prediction log and a label log: metrics by window and model, drift alarms; writes a page.

    `recsys monitor logs/predictions logs/labels window=1h max_delay=30m`

    `recsys monitor logs/predictions logs/labels --once --json`
    """
    with _job(as_json) as job:
        from pipelines.monitor import monitor

        job.result = monitor(
            predictions,
            labels,
            job.console,
            out=out or workspace / "monitor",
            overrides=overrides or [],
            once=once,
            finish=finish,
            every=every,
            reference=reference,
            tracking_uri=tracking_uri,
            experiment=experiment,
        )


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A recipe; without it they are listed.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value", help="Its parameters.")] = None,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option("--out", help="The Parquet file; `NAME.parquet` by default.")] = None,
    folder: Annotated[Path | None, typer.Option("--folder", help="The recipe's files.")] = None,
) -> None:
    """List the recipes, or write one's events to Parquet.

    `recsys data synthetic rows=10000 --out events.parquet`
    """
    with _job(as_json) as job:
        from pipelines import data as jobs
        from pipelines.config import parse_override

        if name is None:
            job.result = jobs.list_recipes(job.console)
        else:
            params = dict(parse_override(text) for text in overrides or [])
            job.result = jobs.write_events(name, out or Path(f"{name}.parquet"), params, folder, job.console)


class _Job:
    """A verb at work: where it speaks, and what it came to.

    Of several processes that `torchrun` started, the first speaks; the others only say what went wrong.
    """

    def __init__(self, as_json: bool) -> None:
        from pipelines.console import Console

        self.rank = int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self.console = Console(to_stderr=as_json, quiet=self.rank > 0)
        self.result: dict[str, Any] = {}


@contextmanager
def _job(as_json: bool) -> Iterator[_Job]:
    """Turns a job's outcome into an exit code, and its result into the last line."""
    _switch_telemetry_off()
    job = _Job(as_json)
    try:
        yield job
    except RecsysError as error:
        whose = f"process {job.rank}: " if job.rank else ""
        sys.stderr.write(f"{whose}error: {error}\n")  # in one piece: other processes may write too
        sys.stderr.flush()
        if as_json and not job.rank:
            kind = type(error).__name__
            print(json.dumps({"error": {"type": kind, "field": error.field, "message": str(error)}}), flush=True)
        raise typer.Exit(USAGE) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        raise typer.Exit(130) from None
    if as_json and not job.rank:
        print(json.dumps(job.result, allow_nan=False), flush=True)
    if job.result.get("gates_failed"):
        raise typer.Exit(GATE_FAILED)


def _check_choice(option: str, value: str, *known: str) -> None:
    if value not in known:
        raise typer.BadParameter(f"give {' or '.join(known)}", param_hint=option)


def _load(config: Path, overrides: list[str] | None) -> Any:
    from pipelines.config import load_config

    return load_config(config, overrides or [])


def _names(text: str) -> list[str]:
    """What stands between commas."""
    return [name for name in text.split(",") if name]


def _tracking_uri(given: str | None, workspace: Path) -> str:
    return given or f"sqlite:///{(workspace / 'mlflow.db').resolve()}"


def _switch_telemetry_off() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `recsys` command; its arguments are those of the process when left out."""
    app(arguments, prog_name="recsys")


if __name__ == "__main__":
    main()
