"""The graph of the stack as a CloudFormation template, for cfn-lint: AWS's own schemas as a second opinion.

The template is never deployed. It is written from what infra/testing/evaluate.mjs prints, so that what SST's
types let through (a retention that CloudWatch does not know, a cron expression with five fields) is caught.

    node infra/testing/evaluate.mjs prod | python infra/testing/cloudformation.py > template.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

Properties = dict[str, Any]

# Pulumi's type: CloudFormation's, and what is not just the property's name with a capital letter.
# None drops a property that CloudFormation's type has no word for.
TYPES: dict[str, tuple[str, dict[str, str | None]]] = {
    "aws:lambda/function:Function": ("AWS::Lambda::Function", {"name": "FunctionName", "publish": None}),
    "aws:lambda/permission:Permission": (
        "AWS::Lambda::Permission",
        {"function": "FunctionName", "qualifier": None},
    ),
    "aws:cloudwatch/logGroup:LogGroup": ("AWS::Logs::LogGroup", {"name": "LogGroupName"}),
    "aws:cloudwatch/logMetricFilter:LogMetricFilter": (
        "AWS::Logs::MetricFilter",
        {"name": "FilterName", "pattern": "FilterPattern", "metricTransformation": "MetricTransformations"},
    ),
    "aws:cloudwatch/metricAlarm:MetricAlarm": (
        "AWS::CloudWatch::Alarm",
        {"name": "AlarmName", "metricQueries": "Metrics", "okActions": "OKActions"},
    ),
    "aws:cloudwatch/dashboard:Dashboard": ("AWS::CloudWatch::Dashboard", {}),
    "aws:scheduler/schedule:Schedule": ("AWS::Scheduler::Schedule", {}),
    "aws:sns/topic:Topic": ("AWS::SNS::Topic", {"name": "TopicName"}),
    "aws:sns/topicSubscription:TopicSubscription": ("AWS::SNS::Subscription", {"topic": "TopicArn"}),
    "aws:iam/role:Role": (
        "AWS::IAM::Role",
        {"name": "RoleName", "inlinePolicies": "Policies", "assumeRolePolicy": "AssumeRolePolicyDocument"},
    ),
    "aws:apigatewayv2/api:Api": ("AWS::ApiGatewayV2::Api", {}),
    "aws:apigatewayv2/stage:Stage": ("AWS::ApiGatewayV2::Stage", {"name": "StageName"}),
    "aws:apigatewayv2/route:Route": ("AWS::ApiGatewayV2::Route", {}),
    "aws:apigatewayv2/integration:Integration": ("AWS::ApiGatewayV2::Integration", {}),
    "aws:apigatewayv2/apiMapping:ApiMapping": ("AWS::ApiGatewayV2::ApiMapping", {}),
    "aws:apigatewayv2/domainName:DomainName": (
        "AWS::ApiGatewayV2::DomainName",
        {"domainNameConfiguration": "DomainNameConfigurations"},
    ),
    "aws:acm/certificate:Certificate": (
        "AWS::CertificateManager::Certificate",
        {"subjectAlternativeNames": None},
    ),
    "aws:route53/record:Record": (
        "AWS::Route53::RecordSet",
        {
            "records": "ResourceRecords",
            "ttl": "TTL",
            "zoneId": "HostedZoneId",
            "allowOverwrite": None,
            "aliases": None,
        },
    ),
}
LISTS = {"MetricTransformations", "DomainNameConfigurations"}


def pascal(value: Any) -> Any:
    """The same value with every key capitalised, as CloudFormation writes them."""
    if isinstance(value, list):
        return [pascal(item) for item in value]
    if isinstance(value, dict):
        return {key[0].upper() + key[1:]: pascal(item) for key, item in value.items() if item is not None}
    return value


def dimensions(value: dict[str, str]) -> list[dict[str, str]]:
    """CloudWatch's dimensions: a list of names and values."""
    return [{"Name": name, "Value": item} for name, item in value.items()]


def convert(kind: str, inputs: Properties) -> Properties:
    """One resource's inputs, in Pulumi's words, as CloudFormation's properties."""
    _, renamed = TYPES[kind]
    properties: Properties = {}
    for key, value in inputs.items():
        name = renamed.get(key, key[0].upper() + key[1:])
        if name is None or value is None:
            continue
        properties[name] = [pascal(value)] if name in LISTS and not isinstance(value, list) else pascal(value)
    return SPECIAL.get(kind, lambda p, _: p)(properties, inputs)


def function(properties: Properties, inputs: Properties) -> Properties:
    """The code's place in S3; variables keep their own names."""
    properties["Code"] = {"S3Bucket": properties.pop("S3Bucket"), "S3Key": properties.pop("S3Key")}
    properties["Environment"] = {"Variables": inputs["environment"]["variables"]}
    return properties


def alarm(properties: Properties, inputs: Properties) -> Properties:
    """Dimensions as lists; a metric of a query stands in MetricStat."""
    if "dimensions" in inputs:
        properties["Dimensions"] = dimensions(inputs["dimensions"])
    for query in properties.get("Metrics", []):
        if metric := query.pop("Metric", None):
            query["MetricStat"] = {
                "Metric": {
                    "Namespace": metric["Namespace"],
                    "MetricName": metric["MetricName"],
                    "Dimensions": [{"Name": k, "Value": v} for k, v in metric["Dimensions"].items()],
                },
                "Period": metric["Period"],
                "Stat": metric["Stat"],
            }
            query["ReturnData"] = False
    return properties


def role(properties: Properties, inputs: Properties) -> Properties:
    """Policies as documents instead of JSON in a string."""
    trust = inputs["assumeRolePolicy"]
    properties["AssumeRolePolicyDocument"] = json.loads(trust) if isinstance(trust, str) else trust
    properties["Policies"] = [
        {"PolicyName": policy["name"], "PolicyDocument": json.loads(policy["policy"])}
        for policy in inputs.get("inlinePolicies", [])
    ]
    return properties


def metric_filter(properties: Properties, _: Properties) -> Properties:
    """The metric's names are MetricName, MetricNamespace and MetricValue there."""
    (metric,) = properties["MetricTransformations"]
    properties["MetricTransformations"] = [
        {
            "MetricName": metric["Name"],
            "MetricNamespace": metric["Namespace"],
            "MetricValue": metric["Value"],
            "DefaultValue": float(metric["DefaultValue"]),
        }
    ]
    return properties


def record(properties: Properties, inputs: Properties) -> Properties:
    """An alias is one target, not a list."""
    if aliases := inputs.get("aliases"):
        (target,) = aliases
        properties["AliasTarget"] = {
            "DNSName": target["name"],
            "HostedZoneId": target["zoneId"],
            "EvaluateTargetHealth": target["evaluateTargetHealth"],
        }
    if "TTL" in properties:
        properties["TTL"] = str(properties["TTL"])
    return properties


SPECIAL = {
    "aws:lambda/function:Function": function,
    "aws:cloudwatch/metricAlarm:MetricAlarm": alarm,
    "aws:iam/role:Role": role,
    "aws:cloudwatch/logMetricFilter:LogMetricFilter": metric_filter,
    "aws:route53/record:Record": record,
}


def distribution(inputs: Properties) -> Properties:
    """CloudFront's settings, with its own capitals."""
    (origin,) = inputs["origins"]
    custom = origin["customOriginConfig"]
    certificate = inputs["viewerCertificate"]
    return {
        "DistributionConfig": {
            "Enabled": inputs["enabled"],
            "Comment": inputs["comment"],
            "Aliases": inputs["aliases"],
            "HttpVersion": inputs["httpVersion"],
            "IPV6Enabled": inputs["isIpv6Enabled"],
            "PriceClass": inputs["priceClass"],
            "DefaultCacheBehavior": pascal(inputs["defaultCacheBehavior"]),
            "Origins": [
                {
                    "Id": origin["originId"],
                    "DomainName": origin["domainName"],
                    "CustomOriginConfig": {
                        "HTTPPort": custom["httpPort"],
                        "HTTPSPort": custom["httpsPort"],
                        "OriginKeepaliveTimeout": custom["originKeepaliveTimeout"],
                        "OriginReadTimeout": custom["originReadTimeout"],
                        "OriginProtocolPolicy": custom["originProtocolPolicy"],
                        "OriginSSLProtocols": custom["originSslProtocols"],
                    },
                }
            ],
            "Restrictions": pascal(inputs["restrictions"]),
            "ViewerCertificate": pascal(certificate),
        }
    }


def health_check(inputs: Properties) -> Properties:
    """Route 53's health check, with its own capitals."""
    names = {"fqdn": "FullyQualifiedDomainName", "enableSni": "EnableSNI"}
    config = {names.get(key, key[0].upper() + key[1:]): value for key, value in inputs.items()}
    return {"HealthCheckConfig": config}


def template(graph: dict[str, Any]) -> dict[str, Any]:
    """The template of a graph; a type that is not known here is an error, so that none goes unchecked."""
    elsewhere = {
        "aws:s3/bucketObjectv2:BucketObjectv2",  # CloudFormation has no objects
        "aws:acm/certificateValidation:CertificateValidation",  # a wait, not a resource
        "aws:lambda/functionEventInvokeConfig:FunctionEventInvokeConfig",  # wants a qualifier
    }
    resources: dict[str, Any] = {}
    for resource in graph["resources"]:
        kind, name, inputs = resource["type"], resource["name"], resource["inputs"]
        if not kind.startswith("aws:") or kind in elsewhere:
            continue
        if kind == "aws:cloudfront/distribution:Distribution":
            resources[name] = {"Type": "AWS::CloudFront::Distribution", "Properties": distribution(inputs)}
        elif kind == "aws:route53/healthCheck:HealthCheck":
            resources[name] = {"Type": "AWS::Route53::HealthCheck", "Properties": health_check(inputs)}
        else:
            resources[name] = {"Type": TYPES[kind][0], "Properties": convert(kind, inputs)}
        if kind == "aws:scheduler/schedule:Schedule":
            # The same expressions as the Scheduler's; cfn-lint reads them in rules only.
            expression = {"ScheduleExpression": inputs["scheduleExpression"], "State": "ENABLED"}
            resources[f"{name}Expression"] = {"Type": "AWS::Events::Rule", "Properties": expression}
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}


if __name__ == "__main__":
    json.dump(template(json.load(sys.stdin)), sys.stdout, indent=1)
