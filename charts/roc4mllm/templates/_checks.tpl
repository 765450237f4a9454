{{- /* What the schema can't say: values that contradict each other. Each message says what to change. */ -}}
{{- define "roc4mllm.checks" -}}
{{- include "roc4mllm.checkSecrets" . -}}
{{- $used := dict -}}
{{- range $name, $pool := include "roc4mllm.pools" . | fromYaml -}}
{{- include "roc4mllm.checkPool" (dict "root" $ "name" $name "pool" $pool) -}}
{{- $config := include "roc4mllm.effectiveConfig" (dict "root" $ "gpu" $pool.gpu.count "config" $pool.config) | fromYaml -}}
{{- $most := ternary $pool.autoscaling.maxReplicas $pool.replicas $pool.autoscaling.enabled -}}
{{- range $topic := $config.kafka.input_topics -}}
{{- $key := printf "%s of the group %s" $topic $config.kafka.group -}}
{{- $sum := add (get $used $key | default 0) $most -}}
{{- if gt (int $sum) (int $pool.partitions) -}}
{{- fail (printf "workers.%s: its topic %s may get %d workers and has %d partitions, so some would idle; lower autoscaling.maxReplicas or replicas, or add partitions and say so in partitions" $name $key (int $sum) (int $pool.partitions)) -}}
{{- end -}}
{{- $_ := set $used $key $sum -}}
{{- end -}}
{{- end -}}
{{- if and .Values.retrain.enabled (not (dig "registry" "publish_to" "" (mustMergeOverwrite (deepCopy .Values.config) (deepCopy .Values.retrain.config)))) -}}
{{- fail "retrain.enabled needs config.registry.publish_to, the s3:// address that versions are published below" -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics: podMonitor and serviceMonitor would scrape every worker twice; enable one" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.service.enabled) -}}
{{- fail "metrics.serviceMonitor needs the service; set service.enabled, or use metrics.podMonitor" -}}
{{- end -}}
{{- end -}}

{{- define "roc4mllm.checkPool" -}}
{{- $name := .name -}}
{{- $pool := .pool -}}
{{- $config := include "roc4mllm.effectiveConfig" (dict "root" .root "gpu" $pool.gpu.count "config" $pool.config) | fromYaml -}}
{{- $pipeline := $config.pipeline | default dict -}}
{{- $drain := div (add (int ($pipeline.drain_ms | default 20000)) 999) 1000 -}}
{{- $farewell := div (add (int ($config.kafka.close_timeout_ms | default 5000)) 999) 1000 -}}
{{- $needed := add $pool.preStopSeconds $drain $farewell 5 -}}
{{- if lt (int $pool.terminationGracePeriodSeconds) (int $needed) -}}
{{- fail (printf "workers.%s: terminationGracePeriodSeconds is %d, but preStop, a drain, a last commit and the farewell take up to %d s; raise it, or lower config.pipeline.drain_ms" $name (int $pool.terminationGracePeriodSeconds) (int $needed)) -}}
{{- end -}}
{{- $scaling := $pool.autoscaling -}}
{{- if $scaling.enabled -}}
{{- if and (include "roc4mllm.usesSasl" .root) (eq (dig "sasl" "mechanism" "" $config.kafka) "OAUTHBEARER") -}}
{{- fail (printf "workers.%s: the chart cannot give KEDA an OAUTHBEARER token; set autoscaling.enabled to false and make a ScaledObject of your own" $name) -}}
{{- end -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "workers.%s: autoscaling.minReplicas is above maxReplicas; lower it" $name) -}}
{{- end -}}
{{- range $key := list "cooldownPeriod" "scaleDownStabilizationSeconds" -}}
{{- if le (int (get $scaling $key)) (int $pool.modelLoadSeconds) -}}
{{- fail (printf "workers.%s: autoscaling.%s is %d s, not above modelLoadSeconds (%d), so a worker could go before it has scored anything; raise it" $name $key (int (get $scaling $key)) (int $pool.modelLoadSeconds)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq $pool.cache.kind "claim") (not $pool.cache.existingClaim) -}}
{{- fail (printf "workers.%s: cache.kind is claim, but cache.existingClaim names none" $name) -}}
{{- end -}}
{{- if and $pool.checkpoint.digest (not $pool.checkpoint.existingClaim) -}}
{{- fail (printf "workers.%s: checkpoint.digest is for a mounted claim; set checkpoint.existingClaim, or leave it out: what comes from S3 is verified against its manifest" $name) -}}
{{- end -}}
{{- if $pool.checkpoint.existingClaim -}}
{{- if not (hasPrefix (printf "%s/" $pool.checkpoint.mountPath) $config.model.checkpoint) -}}
{{- fail (printf "workers.%s: model.checkpoint is %q, which is not below checkpoint.mountPath %q; name a folder below it" $name $config.model.checkpoint $pool.checkpoint.mountPath) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "roc4mllm.checkSecrets" -}}
{{- $places := dict "config" .Values.config "workerDefaults.config" .Values.workerDefaults.config "retrain.config" .Values.retrain.config -}}
{{- range $name, $pool := .Values.workers -}}
{{- $_ := set $places (printf "workers.%s.config" $name) (($pool | default dict).config | default dict) -}}
{{- end -}}
{{- range $place, $config := $places -}}
{{- if dig "http" "listen" "" $config -}}
{{- fail (printf "%s.http.listen: probes and service follow service.port; set that" $place) -}}
{{- end -}}
{{- if dig "registry" "cache_dir" "" $config -}}
{{- fail (printf "%s.registry.cache_dir: the root is read-only but for the volumes that the chart mounts; see workerDefaults.cache and retrain.work" $place) -}}
{{- end -}}
{{- if dig "retrain" "work_dir" "" $config -}}
{{- fail (printf "%s.retrain.work_dir: the root is read-only but for the volumes that the chart mounts; see retrain.work" $place) -}}
{{- end -}}
{{- $sasl := dig "kafka" "sasl" dict $config -}}
{{- $found := list -}}
{{- if dig "postgres" "url" "" $config -}}{{- $found = append $found "postgres.url" -}}{{- end -}}
{{- if dig "s3" "secret_access_key" "" $config -}}{{- $found = append $found "s3.secret_access_key" -}}{{- end -}}
{{- if dig "kafka" "tls" "key_password" "" $config -}}{{- $found = append $found "kafka.tls.key_password" -}}{{- end -}}
{{- if dig "http" "score" "token" "" $config -}}{{- $found = append $found "http.score.token" -}}{{- end -}}
{{- if dig "http" "page" "label_token" "" $config -}}{{- $found = append $found "http.page.label_token" -}}{{- end -}}
{{- range $key := list "password" "client_secret" -}}
{{- if get $sasl $key -}}{{- $found = append $found (printf "kafka.sasl.%s" $key) -}}{{- end -}}
{{- end -}}
{{- range $found -}}
{{- fail (printf "%s.%s is a secret and would be readable in a ConfigMap; put it into the secret %q and name its key in secrets.env as ROC4MLLM__%s" $place . $.Values.secrets.existingSecret (. | replace "." "__" | upper)) -}}
{{- end -}}
{{- end -}}
{{- if include "roc4mllm.usesSasl" . -}}
{{- $mechanism := dig "sasl" "mechanism" "SCRAM-SHA-512" .Values.config.kafka -}}
{{- if ne $mechanism "OAUTHBEARER" -}}
{{- range $variable := list "ROC4MLLM__KAFKA__SASL__USERNAME" "ROC4MLLM__KAFKA__SASL__PASSWORD" -}}
{{- if not (hasKey $.Values.secrets.env $variable) -}}
{{- fail (printf "config.kafka.security asks for SASL with %s: secrets.env needs %s and the secret's key that holds it" $mechanism $variable) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
